"""gate.json: what is written is read back, and what does not belong there is refused in one line."""

import json
from dataclasses import fields

import numpy as np
import pytest

from sw_model.errors import ExpertileError
from sw_model.gate import Gate
from sw_model.gate_file import GateFile, dump, load, unigram_information

E, H, G = 4, 32, 2


def gate(**changes):
    rng = np.random.default_rng(1)
    options = {
        "tau": (-300, 20),
        "phi": -900,
        "psi": -500,
        "info": -4,
        "entropy": 7,
        "density": 256,
        "lam": 64,
        "cap": 2,
        "domain_bias": rng.integers(-400, 400, (G, E)),
        "cost": np.full(E, 256),
        "miss": np.arange(E),
        "density_row": rng.standard_normal(H).astype(np.float32),
        "domain_rows": rng.standard_normal((G, H)).astype(np.float32),
    }
    return Gate(**(options | changes))


def gate_file(**changes):
    options = {
        "domains": ("law", "code"),
        "target": 1.2,
        "information": unigram_information([b"aab"]),
        "layers": {0: gate(), 3: gate(domain_rows=None, fallback=np.ones(H, np.float32))},
        "achieved": {"mean_experts": 1.2},
    }
    return GateFile(**(options | changes))


def test_written_and_read_back(tmp_path):
    want = gate_file()
    (tmp_path / "gate.json").write_text(dump(want))
    got = load(tmp_path / "gate.json")
    assert (got.domains, got.target, got.achieved) == (want.domains, want.target, want.achieved)
    np.testing.assert_array_equal(got.information, want.information)
    assert got.layers.keys() == want.layers.keys()
    for n, layer in want.layers.items():
        for f in fields(Gate):
            a, b = getattr(layer, f.name), getattr(got.layers[n], f.name)
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
            else:
                assert a == b


def test_information_is_minus_log2_in_eighths():
    table = unigram_information([b"a" * 767])  # with one more of each byte: 768 of 1023
    assert table[ord("a")] == round(-8 * np.log2(768 / 1023))
    assert table[0] == 80  # 1 of 1023
    assert unigram_information([b"a" * (1 << 20)]).max() < 256


def test_side_band():
    file = gate_file()
    side = file.side_band(b"ab")
    np.testing.assert_array_equal(side.info, file.information[[97, 98]])
    np.testing.assert_array_equal(side.tag, [-1, -1])
    np.testing.assert_array_equal(file.side_band([97], "code").tag, [1])
    assert not gate_file(information=None).side_band(b"ab").info.any()
    with pytest.raises(ExpertileError, match="knows law, code"):
        file.side_band(b"a", "art")


def test_a_layer_that_was_not_calibrated():
    assert gate_file().gate(3).cap == 2
    with pytest.raises(ExpertileError, match=r"no layer 1 in it \(it has 0, 3\)"):
        gate_file().gate(1)


@pytest.mark.parametrize(
    ("where", "value", "match"),
    [
        (("format",), 2, "format 1"),
        (("domains",), ["law", "law"], "different names"),
        (("domains",), "law", "list of names"),
        (("target",), True, "target"),
        (("information",), [1] * 255, "256 numbers"),
        (("information",), [256] * 256, "from 0 to 255"),
        (("layers",), {}, "layer numbers"),
        (("layers",), {"x": {}}, "layer numbers"),
        (("layers", "0"), {}, "layer 0: missing or unknown field 'cap'"),
        (("layers", "0", "psi"), 40000, "psi must be integers from -32768 to 32767"),
        (("layers", "0", "psi"), 1.5, "psi must be integers"),
        (("layers", "0", "tau"), [0] * 9, "at most 8"),
        (("layers", "0", "cost"), [1, 2], "agree on the number of experts"),
        (("layers", "0", "domain_bias"), [[1, 2, 3, 4]], "2 rows"),
        (("layers", "0", "domain_bias"), [[1, 2], [3]], "integers"),
        (("layers", "0", "density_row"), [0.5, 1e39] * (H // 2), "finite"),
        (("layers", "0", "density_row"), [0.5], "agree on the hidden size"),
        (("layers", "0", "fallback"), ["a"], "must be numbers"),
    ],
)
def test_bad_files(tmp_path, where, value, match):
    data = json.loads(dump(gate_file()))
    *path, last = where
    at = data
    for name in path:
        at = at[name]
    at[last] = value
    (tmp_path / "gate.json").write_text(json.dumps(data))
    with pytest.raises(ExpertileError, match=match) as caught:
        load(tmp_path / "gate.json")
    assert "gate.json" in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ExpertileError, match="cannot be read"):
        load(tmp_path / "none.json")
    (tmp_path / "gate.json").write_bytes(b"\xff{")
    with pytest.raises(ExpertileError, match="not valid JSON"):
        load(tmp_path / "gate.json")
