"""Function tables over every argument, against the functions."""

import numpy as np
import pytest

from sw_model.tables import EXP2, EXP2_FRACTION, PROB_FRACTION, SIGMOID, SIGMOID_FRACTION, LinearTable

ALL = np.arange(1 << 16)
# Chord error h**2 / 8 * max |f''|, and one rounding each of knot, slope end and result.
SIGMOID_BOUND = (1 / 8) ** 2 / 8 * 0.09623 * (1 << PROB_FRACTION) + 1.5
EXP2_BOUND = (1 / 64) ** 2 / 8 * np.log(2) ** 2 * (1 << EXP2_FRACTION) + 1.5


def test_sigmoid_everywhere() -> None:
    x = ALL / (1 << SIGMOID_FRACTION)
    error = np.abs(SIGMOID(ALL) - (1 << PROB_FRACTION) / (1 + np.exp(-x)))
    assert error.max() < SIGMOID_BOUND


def test_exp2_everywhere() -> None:
    error = np.abs(EXP2(ALL) - np.exp2(EXP2_FRACTION - ALL / (1 << 16)))
    assert error.max() < EXP2_BOUND


def test_monotone() -> None:
    assert (np.diff(SIGMOID(ALL)) >= 0).all()
    assert (np.diff(EXP2(ALL)) <= 0).all()


def test_ends() -> None:
    assert SIGMOID(ALL[[0, -1]]).tolist() == [1 << (PROB_FRACTION - 1), 1 << PROB_FRACTION]
    first, last = EXP2(ALL[[0, -1]]).tolist()
    assert first == 1 << EXP2_FRACTION
    assert 1 << (EXP2_FRACTION - 1) < last < (1 << (EXP2_FRACTION - 1)) + 300


@pytest.mark.parametrize("table", [SIGMOID, EXP2], ids=lambda t: t.name)
def test_shape(table: LinearTable) -> None:
    assert table.arg_bits == 16
    assert len(table.base) == len(table.slope) == 1 << table.index_bits
    values = table(ALL)
    assert values.min() >= 0
    assert int(values.max()).bit_length() == table.out_bits
    knots = ALL[:: 1 << table.frac_bits]
    assert table(knots).tolist() == list(table.base)


def test_one_segment_by_hand() -> None:
    table = LinearTable("t", base=(0, 10), slope=(10, -7), frac_bits=2)
    assert table(np.arange(8)).tolist() == [0, 3, 5, 8, 10, 8, 7, 5]
    assert (table.index_bits, table.arg_bits, table.out_bits) == (1, 3, 4)
