"""The sequencer's steps against four nested loops."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate
from test_hw_macro_tile import DECODE, STEPS

from hw.cim.macro import Decode
from hw.pe.sequencer import Sequencer
from sw_model.config import HardwareConfig
from sw_model.formats import WEIGHT_FORMATS

NAMES = {fmt.code: fmt.name for fmt in WEIGHT_FORMATS.values()}


def number(value: Any) -> int:
    return int(getattr(value, "value", value))


def config(tiles: int, columns: int = 1) -> HardwareConfig:
    return HardwareConfig(
        name="sequencer", tiles=tiles, words=1024, scales=256, max_hidden=160, max_intermediate=128,
        max_experts=4, max_top_k=2, columns=columns,
    )  # fmt: skip


def steps(p: dict[str, int], tiles: int, step_cycles: int) -> Iterator[dict[str, int]]:
    groups, width = tiles >> p["split"], 1 << p["split"]
    slots, shares = -(-p["rows"] // groups), -(-p["blocks"] // width)
    n_steps, words = STEPS[NAMES[p["format"]]]
    high = p["high"] and NAMES[p["format"]] == "int8"
    if high:
        n_steps = 1
    for slot in range(slots):
        for low in range(1 + p["wide"]):
            for block in range(shares):
                for step, cycle in product(range(n_steps), range(step_cycles)):
                    at = slot * shares + block
                    # A word is read only in the first steps; afterwards its address stands behind the block.
                    yield {
                        "word": p["word"] + at * words + min(step, words),
                        "scale": p["scale"] + at,
                        "from_h": p["from_h"],
                        "bank": p["bank"],
                        "set": 1 + low if p["wide"] else 0,
                        "act": p["act"] + width * block,
                        "acts": min(width, p["blocks"] - block * width),
                        "split": p["split"],
                        "step": step,
                        "first": cycle == 0,
                        "last": cycle == step_cycles - 1,
                        "decode": 3 if high else DECODE.get(NAMES[p["format"]], Decode.INTEGER).value,
                        "read": step < words,
                        "compute": NAMES[p["format"]] != "fp8" or step > 0,
                        "last_step": step == n_steps - 1,
                        "first_block": block == 0 and not low,
                        "last_block": block == shares - 1 and low == p["wide"],
                        "rows": min(groups, p["rows"] - slot * groups)
                        * min(width, p["blocks"] - block * width),
                        "end": slot == slots - 1
                        and low == p["wide"]
                        and block == shares - 1
                        and step == n_steps - 1
                        and cycle == step_cycles - 1,
                        "final": p["final"],
                    }


def random_pass(rng: np.random.Generator, columns: int = 1) -> dict[str, int]:
    return {
        "word": int(rng.integers(100)), "scale": int(rng.integers(30)), "rows": int(rng.integers(1, 10)),
        "blocks": int(rng.integers(1, 6)), "format": int(rng.integers(5)),
        "split": int(rng.integers(columns.bit_length())),
        "from_h": int(rng.integers(2)), "wide": int(rng.integers(2)), "bank": int(rng.integers(2)),
        "act": int(rng.integers(5)), "high": int(rng.integers(2)), "final": int(rng.integers(2)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tiles", "columns", "step_cycles"), [(1, 1, 1), (2, 1, 1), (4, 4, 1), (8, 2, 1), (2, 1, 2), (4, 4, 8)]
)
@pytest.mark.parametrize(("offer", "credit"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.2), (0.5, 0.5)])
def test_steps(tiles: int, columns: int, step_cycles: int, offer: float, credit: float) -> None:
    rng = np.random.default_rng(tiles)
    dut = Sequencer(config(tiles, columns), step_cycles)
    passes = [random_pass(rng, columns) for _ in range(20)]
    passes[3:6] = [
        {**passes[3], "rows": 1, "blocks": 1, "format": 0, "split": 0, "wide": w} for w in (0, 1, 0)
    ]
    want = [s for p in passes for s in steps(p, tiles, step_cycles)]
    slots = sum(-(-p["rows"] // (tiles >> p["split"])) for p in passes)

    async def bench(ctx: Any) -> None:
        got, valid_at, starts, sent, offered = [], [], 0, 0, False
        credited = False  # in the cycle before
        for cycle in range(20 * len(want)):
            if not offered and sent < len(passes) and rng.random() < offer:
                offered = True
                ctx.set(dut.i.payload, passes[sent])
            ctx.set(dut.i.valid, offered)
            can = rng.random() < credit
            ctx.set(dut.credit, can)
            ready, valid, o, start = await clock(ctx, dut.i.ready, dut.o_valid, dut.o, dut.start)
            assert can or not start, "a slot was started without credit"
            starts += start
            if valid:
                got.append({k: number(o[k]) for k in want[0]})
                valid_at.append(cycle)
                new_slot = o.step == 0 and o.first_block and o.first
                assert credited or not new_slot
            credited = can
            if offered and ready:
                offered, sent = False, sent + 1
            if len(got) == len(want):
                break
        assert got == want
        assert starts == slots
        for _ in range(5):
            assert await clock(ctx, dut.o_valid, dut.i.ready) == (0, 1)
        if offer == credit == 1:  # from the first pass to the last without a gap
            assert valid_at == list(range(valid_at[0], valid_at[0] + len(want)))
            assert valid_at[0] == 2

    simulate(dut, bench)


def test_no_pass_is_taken_while_one_runs() -> None:
    dut = Sequencer(config(2))
    a, b = (
        {**random_pass(np.random.default_rng(s)), "rows": 4, "blocks": 2, "format": 1, "wide": 0, "high": 0}
        for s in (1, 2)
    )

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, a)
        await clock(ctx)
        ctx.set(dut.i.payload, b)
        for _ in range(10):  # credit withheld: a waits before its first step
            assert await clock(ctx, dut.i.ready, dut.o_valid, dut.start) == (0, 0, 0)
        ctx.set(dut.credit, 1)
        ready = [(await clock(ctx, dut.i.ready))[0] for _ in range(8)]
        assert ready == [0] * 7 + [1]

    simulate(dut, bench)
