"""The NumPy decoder and bits per byte, against a plain float64 forward pass written here."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from sw_model.checkpoint import Checkpoint
from sw_model.decoder import Decoder, generate, layer_inputs, sample
from sw_model.errors import ExpertileError
from sw_model.evaluation import default_texts, evaluate, read_texts, score_text


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(t, prefix, x):
    gate, up, down = (t[f"{prefix}{n}_proj.weight"] for n in ("gate", "up", "down"))
    return down @ (silu(gate @ x) * (up @ x))


def moe_token(t, p, config, x):
    """One token through one MoE block."""
    logits = t[p + "gate.weight"] @ x
    probability = np.exp(logits) / np.exp(logits).sum()
    chosen = np.argsort(-probability, kind="stable")[: config["num_experts_per_tok"]]
    scale = probability[chosen].sum() if config["norm_topk_prob"] else 1.0
    y = sum(probability[e] / scale * swiglu(t, f"{p}experts.{e}.", x) for e in chosen)
    gate = 1 / (1 + np.exp(-t[p + "shared_expert_gate.weight"][0] @ x))
    return y + gate * swiglu(t, p + "shared_expert.", x)


def plain_forward(folder, config, ids):
    """Logits [T, V], token by token and head by head in float64."""
    t = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    d = config["hidden_size"] // heads

    def norm(x, name):
        return x / np.sqrt((x**2).mean() + config["rms_norm_eps"]) * t[name]

    def rotate(x, position):
        out = np.empty_like(x)
        for i in range(d // 2):
            angle = position * config["rope_theta"] ** (-2 * i / d)
            turned = (x[i] + 1j * x[i + d // 2]) * np.exp(1j * angle)
            out[i], out[i + d // 2] = turned.real, turned.imag
        return out

    rows = [t["model.embed_tokens.weight"][i] for i in ids]
    for n in range(config["num_hidden_layers"]):
        p = f"model.layers.{n}."
        q, k, v = [], [], []
        for position, row in enumerate(rows):
            x = norm(row, p + "input_layernorm.weight")
            for name, out, turn in (("q", q, True), ("k", k, True), ("v", v, False)):
                y = t[f"{p}self_attn.{name}_proj.weight"] @ x + t[f"{p}self_attn.{name}_proj.bias"]
                out.append([rotate(h, position) if turn else h for h in y.reshape(-1, d)])
        for position, row in enumerate(rows):
            mixed = []
            for h in range(heads):
                g = h // (heads // kv)
                s = np.array([q[position][h] @ k[j][g] / np.sqrt(d) for j in range(position + 1)])
                w = np.exp(s) / np.exp(s).sum()
                mixed.append(sum(w[j] * v[j][g] for j in range(position + 1)))
            r = row + t[p + "self_attn.o_proj.weight"] @ np.concatenate(mixed)
            x = norm(r, p + "post_attention_layernorm.weight")
            dense = n in config.get("mlp_only_layers", [])
            rows[position] = r + (swiglu(t, p + "mlp.", x) if dense else moe_token(t, p + "mlp.", config, x))
    head = t["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return np.array([head @ norm(row, "model.norm.weight") for row in rows])


def float_moe(checkpoint):
    """The MoE callable of a Decoder, in float64."""
    t = {k: v.astype(np.float64) for k, v in load_file(checkpoint.folder / "model.safetensors").items()}

    def moe(layer, x):
        p = f"model.layers.{layer}.mlp."
        return np.array([moe_token(t, p, checkpoint.config, row.astype(np.float64)) for row in x], np.float32)

    return moe


def open_decoder(folder):
    checkpoint = Checkpoint.open(folder)
    return Decoder(checkpoint, float_moe(checkpoint)), checkpoint


IDS = np.random.default_rng(5).integers(0, 256, 23)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
        {"num_key_value_heads": 1, "norm_topk_prob": False, "mlp_only_layers": [0]},
    ],
    ids=["plain", "tied", "one-kv-head-and-a-dense-layer"],
)
def test_logits(make_checkpoint, options):
    decoder, checkpoint = open_decoder(make_checkpoint(**options))
    want = plain_forward(checkpoint.folder, checkpoint.config, IDS)
    got = decoder.forward(IDS)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_rotary_settings_may_be_nested(make_checkpoint):
    nested = Checkpoint.open(make_checkpoint(rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    assert nested.shape.rope_theta == 500.0


@pytest.mark.parametrize("pieces", [[1] * 23, [10, 13], [5, 1, 17]])
def test_a_text_in_pieces_gives_the_same_logits(tiny_checkpoint, pieces):
    decoder, _ = open_decoder(tiny_checkpoint)
    whole = decoder.forward(IDS)
    decoder.reset()
    parts = [decoder.forward(part) for part in np.split(IDS, np.cumsum(pieces)[:-1])]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5)


def test_bad_tokens(tiny_checkpoint):
    decoder, _ = open_decoder(tiny_checkpoint)
    for ids, match in [
        ([256], "vocabulary is 0 to 255"),
        ([-1], "vocabulary"),
        ([], "one or more"),
        ([0.5], "integers"),
        ([0] * 97, "96 positions"),
    ]:
        with pytest.raises(ExpertileError, match=match):
            decoder.forward(ids)
    assert decoder.position == 0


def test_sampling():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([1, 4, 4, 1], np.float32))
    assert sample(logits, 0, rng) == 1
    counts = np.bincount([sample(logits, 1.0, rng) for _ in range(2000)], minlength=4) / 2000
    np.testing.assert_allclose(counts, [0.1, 0.4, 0.4, 0.1], atol=0.04)
    assert all(sample(logits, 0.01, rng) in (1, 2) for _ in range(20))


def test_generation_repeats_with_its_seed_and_outlives_the_context(tiny_checkpoint):
    decoder, _ = open_decoder(tiny_checkpoint)
    texts = [list(generate(decoder, b"abc", 120, temperature=1.0, seed=s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 120 > decoder.shape.positions
    greedy = list(generate(decoder, b"abc", 3))
    decoder.reset()
    assert greedy[0] == np.argmax(decoder.forward(b"\0abc")[-1])  # the text begins with the BOS token


def test_layer_inputs_are_what_the_layers_see(tiny_checkpoint):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    inputs = layer_inputs(checkpoint, [b"first", b"two"])
    assert {n: x.shape for n, x in inputs.items()} == {0: (10, 64), 1: (10, 64)}
    alone = layer_inputs(checkpoint, [b"two"])
    np.testing.assert_allclose(inputs[1][6:], alone[1], atol=1e-5)


TEXT = bytes(np.random.default_rng(6).integers(32, 127, 50).tolist())


def test_bits_per_byte_in_one_window(tiny_checkpoint):
    decoder, checkpoint = open_decoder(tiny_checkpoint)
    logits = plain_forward(checkpoint.folder, checkpoint.config, b"\0" + TEXT)[:-1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    want = -np.log2(p[np.arange(50), list(TEXT)])
    score = score_text(decoder, TEXT, context=64, stride=32)
    assert score.count == 50
    assert score.bits_per_byte == pytest.approx(want.mean(), abs=1e-4)


def test_sliding_windows_score_every_byte_once(tiny_checkpoint):
    decoder, _ = open_decoder(tiny_checkpoint)
    context, stride, seen = 16, 6, []
    score = score_text(decoder, TEXT, context=context, stride=stride, progress=seen.append)
    assert sum(seen) == score.count == 50
    assert seen[0] == context - 1 and set(seen[1:-1]) == {stride}
    ids, want = list(b"\0" + TEXT), 0.0
    for n in range(1, 51):  # each byte by itself, with the history that its window gives it
        end = context if n < context else min(51, context + -(-(n - context + 1) // stride) * stride)
        decoder.reset()
        logits = decoder.forward(ids[max(0, end - context) : n])[-1].astype(np.float64)
        want -= np.log2(np.exp(logits[ids[n]]) / np.exp(logits).sum())
    assert score.bits == pytest.approx(want, rel=1e-4)


def test_evaluation_by_domain(tiny_checkpoint, tmp_path):
    decoder, _ = open_decoder(tiny_checkpoint)
    (tmp_path / "legal.txt").write_bytes(TEXT)
    texts = read_texts([tmp_path / "legal.txt"], limit=20)
    scores = evaluate(decoder, {"code": [TEXT[:9], TEXT[9:20]], **texts}, context=32, stride=16)
    assert {k: s.count for k, s in scores.items()} == {"code": 20, "legal": 20}
    with pytest.raises(ExpertileError, match="stride"):
        evaluate(decoder, texts, context=97, stride=16)
    with pytest.raises(ExpertileError, match="cannot be read"):
        read_texts([tmp_path / "none.txt"])


def test_default_texts(tmp_path):
    with pytest.raises(ExpertileError, match="--text"):
        default_texts(tmp_path)
    (tmp_path / "models/base/heldout").mkdir(parents=True)
    (tmp_path / "models/base/heldout/code.txt").write_bytes(TEXT)
    assert default_texts(tmp_path) == {"code": [TEXT]}
    (tmp_path / "build/corpus/test").mkdir(parents=True)
    (tmp_path / "build/corpus/test/legal.txt").write_bytes(b"first\0second\0third")
    assert default_texts(tmp_path) == {"legal": [b"first", b"second", b"third"]}
    assert default_texts(tmp_path, limit=8) == {"legal": [b"first", b"sec"]}
