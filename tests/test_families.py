"""Every family against its own rule, written out here in float64, token by token, from its own layout."""

import numpy as np
import pytest
from family_checkpoints import CONFIGS, EXPERT_NAMES, tiny

from expertile.cli import main
from sw_model import reference
from sw_model.checkpoint import Checkpoint
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.families import FAMILIES
from sw_model.moe import Activation, RouterRule
from sw_model.quantised import quantise

P = "model.layers.1.mlp."


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    return np.exp(v - v.max()) / np.exp(v - v.max()).sum()


def best(v, k):
    """Indices of the k largest, ties to the lowest index."""
    return sorted(range(len(v)), key=lambda i: (-v[i], i))[:k]


def swiglu(t, prefix, x, names=EXPERT_NAMES):
    gate, up, down = (t[f"{prefix}{name}.weight"] for name in names)
    g = gate @ x
    return down @ (g * sigmoid(g) * (up @ x))


def in_groups(c, score, config):
    """c, with -inf outside the best groups."""
    groups = np.split(c, config["n_group"])
    kept = best([score(g) for g in groups], config["topk_group"])
    return np.concatenate([g if i in kept else np.full_like(g, -np.inf) for i, g in enumerate(groups)])


def mixtral(t, c, x):
    p = "model.layers.1.block_sparse_moe."
    s = softmax(t[p + "gate.weight"] @ x)
    chosen = best(s, c["num_experts_per_tok"])
    total = sum(s[e] for e in chosen)
    return chosen, sum(s[e] / total * swiglu(t, f"{p}experts.{e}.", x, ("w1", "w3", "w2")) for e in chosen)


def olmoe(t, c, x):
    s = softmax(t[P + "gate.weight"] @ x)
    chosen = best(s, c["num_experts_per_tok"])
    total = sum(s[e] for e in chosen) if c["norm_topk_prob"] else 1
    return chosen, sum(s[e] / total * swiglu(t, f"{P}experts.{e}.", x) for e in chosen)


def qwen2_moe(t, c, x):
    chosen, y = olmoe(t, c, x)
    gate = sigmoid(t[P + "shared_expert_gate.weight"][0] @ x)
    return chosen, y + gate * swiglu(t, P + "shared_expert.", x)


def deepseek(t, c, x):
    chosen, y = olmoe(t, c, x)
    return chosen, y + swiglu(t, P + "shared_experts.", x)


def deepseek_v2(t, c, x):
    s = softmax(t[P + "gate.weight"] @ x)
    masked = in_groups(s, max, c) if c["topk_method"] == "group_limited_greedy" else s
    chosen = best(masked, c["num_experts_per_tok"])
    y = sum(s[e] * c["routed_scaling_factor"] * swiglu(t, f"{P}experts.{e}.", x) for e in chosen)
    return chosen, y + swiglu(t, P + "shared_experts.", x)


def deepseek_v3(t, c, x):
    s = sigmoid(t[P + "gate.weight"] @ x)
    biased = s + t[P + "gate.e_score_correction_bias"]
    chosen = best(in_groups(biased, lambda g: np.sort(g)[-2:].sum(), c), c["num_experts_per_tok"])
    total = sum(s[e] for e in chosen) if c["norm_topk_prob"] else 1
    factor = c["routed_scaling_factor"] / total
    y = sum(s[e] * factor * swiglu(t, f"{P}experts.{e}.", x) for e in chosen)
    return chosen, y + swiglu(t, P + "shared_experts.", x)


def gpt_oss(t, c, x):
    logits = t[P + "router.weight"] @ x + t[P + "router.bias"]
    chosen = best(logits, c["num_experts_per_tok"])
    weights = softmax(logits[chosen])
    limit, y = c["swiglu_limit"], 0
    for e, weight in zip(chosen, weights, strict=True):
        both = x @ t[P + "experts.gate_up_proj"][e] + t[P + "experts.gate_up_proj_bias"][e]
        gate, up = np.minimum(both[0::2], limit), np.clip(both[1::2], -limit, limit)
        h = (up + 1) * gate * sigmoid(1.702 * gate)
        y = y + weight * (h @ t[P + "experts.down_proj"][e] + t[P + "experts.down_proj_bias"][e])
    return chosen, y


FORWARD = {
    "mixtral": mixtral,
    "olmoe": olmoe,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": olmoe,
    "deepseek": deepseek,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
}
EDGES = {"hidden": 160, "wide": 140}  # tiles of 128 cut at 32 and at 12
CASES = {
    **{family: (family, {}) for family in FORWARD},
    "odd-sizes": ("olmoe", {"hidden": 50, "wide": 33}),
    "olmoe-renormalised": ("olmoe", {"norm_topk_prob": True}),
    "qwen2_moe-renormalised": ("qwen2_moe", {"norm_topk_prob": True}),
    "deepseek-one-expert": ("deepseek", {"num_experts_per_tok": 1, "norm_topk_prob": False}),
    "deepseek_v2-greedy": ("deepseek_v2", {"topk_method": "greedy", "n_group": None, "topk_group": None}),
    "deepseek_v3-no-groups": ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
    "deepseek_v3-64-in-8-groups": (
        "deepseek_v3",
        {"n_routed_experts": 64, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4},
    ),
    "deepseek_v3-not-renormalised": ("deepseek_v3", {"norm_topk_prob": False}),
    "mixtral-fp8": ("mixtral", EDGES | {"quantised": True}),
    "qwen2_moe-fp8": ("qwen2_moe", EDGES | {"quantised": True}),
    "qwen3_moe-fp8": ("qwen3_moe", EDGES | {"quantised": True}),
    "deepseek_v3-fp8": ("deepseek_v3", EDGES | {"quantised": True}),
    "gpt_oss-mxfp4": ("gpt_oss", {"quantised": True}),
    "gpt_oss-mxfp4-wider": ("gpt_oss", {"hidden": 96, "wide": 160, "quantised": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_layer_computes_its_familys_rule(case, tmp_path):
    family, options = CASES[case]
    written = tiny(family, **options)
    layer = Checkpoint.open(written.write(tmp_path)).moe_layer(1)
    x = np.random.default_rng(2).standard_normal((40, layer.hidden)).astype(np.float32)
    got = reference.run(layer, x)
    for token, row in enumerate(x.astype(np.float64)):
        chosen, y = FORWARD[family](written.exact, written.config, row)
        assert got.experts[token].tolist() == chosen
        # FP8 weights are rounded once, to the float32 that a layer holds.
        np.testing.assert_allclose(got.y[token], y, rtol=0, atol=1e-6 * np.abs(y).max())


@pytest.mark.parametrize("engine", ["reference", "golden"])
@pytest.mark.parametrize("family", FORWARD)
def test_command_layer_takes_every_family(family, engine, tmp_path):
    x = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    folder = tiny(family, quantised=True).write(tmp_path / "model")
    files = f"--checkpoint {folder} --input {tmp_path}/x.npy --output {tmp_path}/y.npy"
    with pytest.raises(SystemExit) as ended:
        main(["layer", "--layer", "1", "--engine", engine, "--format", "native", *files.split()])
    assert ended.value.code == 0
    want = reference.run(Checkpoint.open(folder).moe_layer(1), x).y
    error = np.abs(np.load(tmp_path / "y.npy") - want).max() / np.abs(want).max()
    assert error < (1e-6 if engine == "reference" else 0.1)


def test_a_decoder_saved_without_its_head_is_read_too(tmp_path):
    written = tiny("gpt_oss", quantised=True)
    whole = Checkpoint.open(written.write(tmp_path / "whole")).moe_layer(1)
    written.stored = {name.removeprefix("model."): value for name, value in written.stored.items()}
    bare = Checkpoint.open(written.write(tmp_path / "bare")).moe_layer(1)
    np.testing.assert_array_equal(bare.experts[2].down, whole.experts[2].down)


def test_every_family_is_tested():
    assert FORWARD.keys() == FAMILIES.keys() == CONFIGS.keys()


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_codes_of_quantised_checkpoints_are_kept(family, tmp_path):
    written = tiny(family, quantised=True, **(EDGES if family != "gpt_oss" else {"hidden": 96}))
    layer = Checkpoint.open(written.write(tmp_path)).moe_layer(1)
    for expert in layer.everyone:
        assert expert.coded.keys() == {"gate", "up", "down"}
        for name, coded in expert.coded.items():
            assert coded.fmt.name == ("mxfp4" if family == "gpt_oss" else "fp8")
            value = getattr(expert, name)
            assert coded.magnitudes.shape == value.shape
            assert coded.scale.shape == (len(value), -(-value.shape[1] // 32))
            np.testing.assert_array_equal(coded.to_float().astype(np.float32), value)
    if family == "gpt_oss":
        exact = written.exact[P + "experts.gate_up_proj"][2]
        np.testing.assert_array_equal(layer.experts[2].gate, exact[:, 0::2].T)
        np.testing.assert_array_equal(layer.experts[2].up, exact[:, 1::2].T)
        np.testing.assert_array_equal(layer.experts[2].down, written.exact[P + "experts.down_proj"][2].T)
    else:
        exact = written.exact[P + "experts.2.down_proj.weight"]
        np.testing.assert_array_equal(layer.experts[2].down, exact.astype(np.float32))


def test_mxfp4_reaches_the_macros_without_loss(tmp_path):
    layer = Checkpoint.open(tiny("gpt_oss", quantised=True).write(tmp_path)).moe_layer(1)
    config = HardwareConfig(
        name="test",
        tiles=2,
        words=2,
        scales=4,
        max_hidden=96,
        max_intermediate=64,
        max_experts=8,
        max_top_k=4,
    )
    quantised = quantise(layer, "native", config)
    assert (quantised.requantised, quantised.scale_error) == (0, 0)
    for expert, exact in zip(quantised.experts, layer.experts, strict=True):
        rows = expert.gate_up.to_float()[:, : layer.hidden]
        np.testing.assert_array_equal(rows[0::2], exact.gate)
        np.testing.assert_array_equal(rows[1::2], exact.up)
        np.testing.assert_array_equal(expert.down.to_float()[:, : layer.intermediate], exact.down)


def test_rules_come_from_the_config(tmp_path):
    def rule(family, **changes):
        return Checkpoint.open(tiny(family).write(tmp_path, **changes)).moe_layer(1)

    assert rule("mixtral", norm_topk_prob=False).rule.renormalise
    assert rule("olmoe", norm_topk_prob=...).rule.renormalise is False
    v3 = rule("deepseek_v3")
    assert v3.rule == RouterRule(
        top_k=3, renormalise=True, scoring="sigmoid", scale=2.5, groups=4, top_groups=2, group_score="top2"
    )
    assert v3.selection_bias.dtype == np.float32
    oss = rule("gpt_oss", experts_per_token=..., swiglu_alpha=1.702)
    assert (oss.activation, oss.limit, oss.rule.top_k) == (Activation.CLAMPED, 2.0, 3)
    assert rule("gpt_oss", num_experts_per_tok=..., swiglu_limit=...).limit == 7
    assert rule("deepseek", num_experts_per_tok=1).rule.renormalise is False
    for none in (None, 0):
        assert rule("deepseek", n_shared_experts=none).shared is None
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        assert rule("qwen3_moe", **({"num_local_experts": ...} | {name: 6})).n_experts == 6


@pytest.mark.parametrize(
    ("family", "changes", "layers"),
    [
        ("mixtral", {}, [0, 1]),
        ("qwen3_moe", {"num_hidden_layers": 7, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1, 5]),
        ("deepseek", {"num_hidden_layers": 5}, [1, 2, 3, 4]),
        ("deepseek_v2", {"num_hidden_layers": 9, "first_k_dense_replace": 2, "moe_layer_freq": 3}, [3, 6]),
        ("deepseek_v3", {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}, [1, 2, 3]),
        ("deepseek_v3", {"num_hidden_layers": 5, "first_k_dense_replace": ...}, [3, 4]),
    ],
)
def test_which_layers_are_moe(family, changes, layers, tmp_path):
    checkpoint = Checkpoint.open(tiny(family).write(tmp_path, **changes))
    assert checkpoint.moe_layers == layers
    assert checkpoint.n_layers == changes.get("num_hidden_layers", 2)


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("olmoe", {"quantization_config": {"quant_method": "awq"}}, "quant_method is 'awq'.*'fp8'"),
        ("qwen3_moe", {"num_experts": 5}, "num_experts is 5: the value of num_local_experts"),
        ("qwen3_moe", {"num_local_experts": ...}, "num_experts is None"),
        ("qwen3_moe", {"num_experts_per_tok": 7}, "num_experts_per_tok is 7: an integer from 1 to 6"),
        ("gpt_oss", {"experts_per_token": 2}, "num_experts_per_tok is 3: the value of experts_per_token"),
        ("gpt_oss", {"swiglu_alpha": 1.0}, "swiglu_alpha is 1.0"),
        ("gpt_oss", {"swiglu_limit": 100.0}, "layer 1: activation limit is 100.0"),
        ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, "quant_method is 'fp8'.*'mxfp4'"),
        ("deepseek", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ("deepseek", {"n_shared_experts": ...}, "n_shared_experts is None"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'.*greedy.*group_limited"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias is True"),
        ("deepseek_v2", {"n_group": 5}, "layer 1: 12 experts cannot be split into 5 groups"),
        ("deepseek_v2", {"routed_scaling_factor": 64.0}, "router scale is 64.0"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ("deepseek_v3", {"topk_group": 5}, "top_groups is 5"),
        ("deepseek_v3", {"num_experts_per_tok": 7}, "top_k is 7: 1 to 6"),
        (
            "deepseek_v3",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            "weight_block_size is",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(family, changes, match, tmp_path):
    folder = tiny(family).write(tmp_path, **changes)
    with pytest.raises(ExpertileError, match=match) as caught:
        Checkpoint.open(folder).moe_layer(1)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_is_described_or_refused_by_name(family, tmp_path):
    checkpoint = Checkpoint.open(tiny(family, intermediate_size=48).write(tmp_path))
    if family in ("mixtral", "qwen2_moe", "deepseek"):
        assert checkpoint.shape.qkv_bias is (family == "qwen2_moe")
        assert checkpoint.shape.rope_theta == (1e6 if family == "mixtral" else 1e4)
    else:
        with pytest.raises(ExpertileError, match="is not supported: of this family, single layers"):
            _ = checkpoint.shape
