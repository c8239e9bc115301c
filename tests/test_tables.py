"""Function tables over every argument, against the functions."""

import numpy as np
import pytest

from sw_model.tables import EXP2, EXP2_FRACTION, LOG2, SIGMOID, SIGMOID_FRACTION, LinearTable

TABLES = pytest.mark.parametrize("table", [SIGMOID, EXP2, LOG2], ids=lambda t: t.name)
# Chord error h**2 / 8 * max |f''|, and one rounding each of knot, slope end and result.
SIGMOID_BOUND = (1 / 16) ** 2 / 8 * 0.09623 * (1 << EXP2_FRACTION) + 1.5
EXP2_BOUND = (1 / 64) ** 2 / 8 * np.log(2) ** 2 * (1 << EXP2_FRACTION) + 1.5
LOG2_BOUND = (1 / 32) ** 2 / 8 / np.log(2) * (1 << 8) + 1.5


def arguments(table: LinearTable) -> np.ndarray:
    return np.arange(1 << table.arg_bits)


def test_sigmoid_everywhere() -> None:
    x = arguments(SIGMOID) / (1 << SIGMOID_FRACTION)
    error = np.abs(SIGMOID(arguments(SIGMOID)) - (1 << EXP2_FRACTION) / (1 + np.exp(-x)))
    assert error.max() < SIGMOID_BOUND


def test_exp2_everywhere() -> None:
    args = arguments(EXP2)
    error = np.abs(EXP2(args) - np.exp2(EXP2_FRACTION - args / (1 << 16)))
    assert error.max() < EXP2_BOUND


def test_log2_everywhere() -> None:
    args = arguments(LOG2)
    error = np.abs(LOG2(args) - np.log2(1 + args / (1 << 12)) * (1 << 8))
    assert error.max() < LOG2_BOUND


def test_monotone() -> None:
    assert (np.diff(SIGMOID(arguments(SIGMOID))) >= 0).all()
    assert (np.diff(EXP2(arguments(EXP2))) <= 0).all()
    assert (np.diff(LOG2(arguments(LOG2))) >= 0).all()


def test_ends() -> None:
    first, last = SIGMOID(arguments(SIGMOID)[[0, -1]]).tolist()
    assert first == 1 << (EXP2_FRACTION - 1)
    assert last == round((1 << EXP2_FRACTION) / (1 + np.exp(-16)))
    first, last = EXP2(arguments(EXP2)[[0, -1]]).tolist()
    assert first == 1 << EXP2_FRACTION
    assert 1 << (EXP2_FRACTION - 1) < last < (1 << (EXP2_FRACTION - 1)) + 300
    assert LOG2(arguments(LOG2)[[0, -1]]).tolist() == [0, 256]


@TABLES
def test_shape(table: LinearTable) -> None:
    assert table.arg_bits == {"sigmoid": 20, "exp2": 16, "log2": 12}[table.name]
    assert len(table.base) == len(table.slope) == 1 << table.index_bits
    args = arguments(table)
    values = table(args)
    assert values.min() >= 0
    # The end of the last segment counts, which no argument reaches.
    end = table.base[-1] + table.slope[-1]
    assert max(int(values.max()), end).bit_length() == table.out_bits
    knots = args[:: 1 << table.frac_bits]
    assert table(knots).tolist() == list(table.base)


def test_one_segment_by_hand() -> None:
    table = LinearTable("t", base=(0, 10), slope=(10, -7), frac_bits=2)
    assert table(np.arange(8)).tolist() == [0, 3, 5, 8, 10, 8, 7, 5]
    assert (table.index_bits, table.arg_bits, table.out_bits) == (1, 3, 4)
