"""Every family against the torch module of transformers, on checkpoints that transformers wrote.

FP8 and MXFP4 are stored by hand here and decoded there. Needs the extra ``oracle``; skipped without it.
"""

import json

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra `oracle`")
torch = pytest.importorskip("torch", reason="needs the extra `oracle`")
from safetensors.torch import load_file, save_file  # noqa: E402

from sw_model import reference  # noqa: E402
from sw_model.checkpoint import Checkpoint  # noqa: E402
from sw_model.decoder import Decoder  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]

LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
DEEPSEEK = LATENT | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 48,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "intermediate_size": 32,
}
GROUPS = {"topk_method": "group_limited_greedy", "routed_scaling_factor": 2.5}
QWEN = {"moe_intermediate_size": 48, "num_experts": 12, "num_experts_per_tok": 4, "intermediate_size": 32}
OSS = {"intermediate_size": 64, "num_local_experts": 12, "num_experts_per_tok": 4, "head_dim": 16}
CASES = {
    "mixtral": ("Mixtral", {"intermediate_size": 48, "num_local_experts": 6}),
    "olmoe": ("Olmoe", {"intermediate_size": 48, "num_experts": 12, "num_experts_per_tok": 4}),
    "olmoe-norm": ("Olmoe", {"intermediate_size": 48, "num_experts": 12, "norm_topk_prob": True}),
    "qwen2_moe": ("Qwen2Moe", QWEN | {"shared_expert_intermediate_size": 56}),
    "qwen2_moe-norm": ("Qwen2Moe", QWEN | {"shared_expert_intermediate_size": 56, "norm_topk_prob": True}),
    "qwen3_moe": ("Qwen3Moe", QWEN | {"norm_topk_prob": True, "head_dim": 16}),
    "deepseek_v2-greedy": ("DeepseekV2", DEEPSEEK | {"topk_method": "greedy", "n_group": None}),
    "deepseek_v2-groups": ("DeepseekV2", DEEPSEEK | GROUPS),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK),
    "deepseek_v3-no-norm": (
        "DeepseekV3",
        DEEPSEEK | {"norm_topk_prob": False, "n_group": 2, "topk_group": 1},
    ),
    "gpt_oss": ("GptOss", OSS),
    "gpt_oss-clamped": ("GptOss", OSS | {"swiglu_limit": 1.5}),
}


def build(name, **options):
    """A float32 model whose weights are exact in bfloat16 and of a trained one's size."""
    base = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    config = getattr(transformers, f"{name}Config")(**(base | options))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for label, value in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in label:
                continue
            gain = 0.3 if value.ndim < 2 else value.shape[-1] ** -0.5
            random = torch.randn(value.shape, generator=generator) * gain + ("norm" in label)
            value.copy_(random.to(torch.bfloat16).float())
    return model


def routed(model, x):
    """y [T, H] and the set of experts of each token, of layer 1."""
    block, chosen = model.model.layers[1].mlp, []
    gate = block.router if hasattr(block, "router") else block.gate
    handle = gate.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2]))
    with torch.no_grad():
        y = block(torch.from_numpy(x)[None])
    handle.remove()
    y = y[0] if isinstance(y, tuple) else y
    return y[0].numpy(), [set(row.tolist()) for row in chosen[0].reshape(len(x), -1)]


def compare(folder, model, record, label):
    """The reader and the float64 reference against torch."""
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.moe_layers[-1] == 1
    layer = checkpoint.moe_layer(1)
    x = np.random.default_rng(2).standard_normal((200, layer.hidden)).astype(np.float32)
    want, experts = routed(model, x)
    got = reference.run(layer, x)
    error = float(np.abs(got.y - want).max() / np.abs(want).max())
    record(f"{label}_error", error)
    print(f"{label}: max error {error:.2e}")
    assert [set(row.tolist()) for row in got.experts] == experts
    assert error < 1e-5
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("case", CASES)
def test_layer_equals_the_torch_module(case, dtype, tmp_path, record_property):
    name, options = CASES[case]
    model = build(name, **options)
    if dtype is torch.float16:  # bfloat16 values that are subnormal in float16 lose bits: round them first
        model = model.half().float()
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    compare(tmp_path, model.float(), record_property, f"{case}-{dtype}")


def test_deepseek_v1_is_v2_without_its_novelties(tmp_path, record_property):
    """transformers has no v1: its names are v2's, and its rule is v2's greedy one, unscaled."""
    model = build("DeepseekV2", **(DEEPSEEK | {"topk_method": "greedy", "routed_scaling_factor": 1.0}))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "deepseek"}))
    compare(tmp_path, model, record_property, "deepseek")


@pytest.mark.parametrize(("hidden", "wide"), [(128, 256), (160, 136)], ids=["whole tiles", "cut tiles"])
@pytest.mark.parametrize("name", ["DeepseekV3", "Qwen3Moe"])
def test_fp8_equals_the_torch_module(name, hidden, wide, tmp_path, record_property):
    options = (DEEPSEEK if name == "DeepseekV3" else QWEN | {"head_dim": 16}) | {
        "moe_intermediate_size": wide
    }
    model = build(name, hidden_size=hidden, **options)
    model.save_pretrained(tmp_path / "float")
    tensors, stored = load_file(tmp_path / "float" / "model.safetensors"), {}
    for label, w in tensors.items():
        if "expert" not in label:
            stored[label] = w
            continue
        rows, columns = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
        scale, code = torch.zeros(rows, columns), torch.zeros(w.shape, dtype=torch.float8_e4m3fn)
        for r in range(rows):
            for c in range(columns):
                tile = np.s_[128 * r : 128 * r + 128, 128 * c : 128 * c + 128]
                scale[r, c] = w[tile].abs().max() / 448
                code[tile] = (w[tile] / scale[r, c]).clamp(-448, 448).to(code.dtype)
                tensors[label][tile] = code[tile].float() * scale[r, c]
        stored[label], stored[f"{label}_scale_inv"] = code, scale
    (tmp_path / "fp8").mkdir()
    save_file(stored, tmp_path / "fp8" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "float" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    if hidden % 128 or wide % 128:  # its own decoder knows whole tiles alone
        save_file(tensors, tmp_path / "float" / "model.safetensors", metadata={"format": "pt"})
        decoded = type(model).from_pretrained(tmp_path / "float", dtype=torch.float32)
    else:
        pytest.importorskip("accelerate", reason="needs the extra `oracle`")
        fp8 = transformers.FineGrainedFP8Config(dequantize=True)
        decoded = (
            type(model)
            .from_pretrained(tmp_path / "fp8", quantization_config=fp8, dtype=torch.float32)
            .float()
        )
    layer = compare(tmp_path / "fp8", decoded.eval(), record_property, f"{name}-fp8-{hidden}x{wide}")
    assert all(c.fmt.name == "fp8" for e in layer.everyone for c in e.coded.values())


def test_mxfp4_equals_the_torch_module(tmp_path, record_property):
    model = build("GptOss", **OSS)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for label in [label for label in tensors if label.endswith(("gate_up_proj", "down_proj"))]:
        n, columns, rows = tensors.pop(label).shape
        shape = (n, rows, columns // 32)
        tensors[f"{label}_blocks"] = torch.randint(
            0, 256, (*shape, 16), generator=generator, dtype=torch.uint8
        )
        tensors[f"{label}_scales"] = torch.randint(121, 125, shape, generator=generator, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoded = type(model).from_pretrained(  # its own decoder of blocks and scales
        tmp_path, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    layer = compare(tmp_path, decoded.float().eval(), record_property, "gpt_oss-mxfp4")
    gate_up = decoded.model.layers[1].mlp.experts.gate_up_proj[3].detach().numpy()
    np.testing.assert_array_equal(layer.experts[3].gate, gate_up[:, 0::2].T)
    np.testing.assert_array_equal(layer.experts[3].up, gate_up[:, 1::2].T)


@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe"])
def test_decoder_equals_the_torch_model(case, tmp_path):
    name, options = CASES[case]
    model = build(name, **options)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    layers = [checkpoint.moe_layer(n) for n in range(2)]
    decoder = Decoder(checkpoint, lambda n, x: reference.run(layers[n], x).y.astype(np.float32))
    ids = np.random.default_rng(4).integers(0, 64, 40)
    with torch.no_grad():
        want = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(decoder.forward(ids), want, rtol=0, atol=1e-5 * np.abs(want).max())
