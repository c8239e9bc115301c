"""The bit-serial macro and what feeds it, against integers, on published timing; its store as a black box."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth_bench import clock, simulate
from test_hw_macro_tile import DECODE, STEPS, digits, pack_bytes, pack_word, piece, random_bytes, random_codes

from hw.boards.tools import run_yosys
from hw.cim.macro import Decode
from hw.cim.serial import BitSerial, SerialMacro
from hw.pe.array import PeArray
from hw.sharing import Sharing
from sw_model.config import load_config
from sw_model.formats import BLOCK, INT8, WEIGHT_FORMATS, WeightFormat


def wide(rng: np.random.Generator, fmt: WeightFormat, lanes: int) -> list[int]:
    return [code for _ in range(0, lanes, BLOCK) for code in random_codes(rng, fmt)][:lanes]


def wide_bytes(rng: np.random.Generator, lanes: int) -> list[int]:
    return [value for _ in range(0, lanes, BLOCK) for value in random_bytes(rng)][:lanes]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bit_serial(bits: int) -> None:
    """Bytes come back from their pieces; words at the full pace and with idle cycles between them."""
    rng = np.random.default_rng(bits)
    dut = BitSerial(bits, lanes=5)
    cycles = 8 // bits
    starts = np.cumsum(rng.choice([cycles, cycles, cycles + 1, cycles + 3], 40)).tolist()
    words = {t: wide_bytes(rng, 5) for t in starts}

    async def bench(ctx: Any) -> None:
        seen = []
        for t in range(starts[-1] + cycles + dut.LATENCY):
            ctx.set(dut.load, t in words)
            ctx.set(dut.act, pack_bytes(words.get(t, wide_bytes(rng, 5))))
            seen.append(await clock(ctx, dut.piece, dut.first))
        for t, word in words.items():
            got = seen[t + dut.LATENCY :][:cycles]
            assert got == [(piece(word, n, bits), int(n == 0)) for n in range(cycles)]

    simulate(dut, bench)


@pytest.mark.parametrize(
    ("bits", "rows", "lanes", "loaded"),
    [(1, 1, BLOCK, False), (2, 1, BLOCK, True), (4, 1, BLOCK, True), (8, 1, BLOCK, False)]
    + [(1, 3, BLOCK, True), (2, 2, 5, False), (1, 2, 64, True), (4, 2, 12, True)],
)
def test_macro(bits: int, rows: int, lanes: int, loaded: bool) -> None:
    """Blocks of all formats in one stream, gaps in between; noise on every input that should not matter."""
    rng = np.random.default_rng(bits + rows + lanes)
    blocks: list[tuple[list[list[int]], WeightFormat, int]] = []  # codes by row, format, address
    words: list[list[int]] = []
    while len(blocks) < 10:
        fmt = list(WEIGHT_FORMATS.values())[len(blocks) % 5]
        codes = [wide(rng, fmt, lanes) for _ in range(rows)]
        blocks.append((codes, fmt, len(words)))
        words += [[pack_word(row, fmt, n) for row in codes] for n in range(STEPS[fmt.name][1])]
    init = [sum(word << 4 * lanes * r for r, word in enumerate(line)) for line in words]
    dut = SerialMacro(len(words), bits, rows=rows, lanes=lanes, init=None if loaded else init)
    cycles = dut.step_cycles
    assert cycles == 8 // bits

    # Steps (block, step) by the cycle that they start in; those of a block follow each other.
    schedule: dict[int, tuple[int, int]] = {}
    t = 0
    for n in rng.permutation(list(range(len(blocks))) * 2).tolist():
        t += int(rng.integers(1, 4)) if rng.random() < 0.3 else 0
        for step in range(STEPS[blocks[n][1].name][0]):
            schedule[t] = (n, step)
            t += cycles
    acts = {start: wide_bytes(rng, lanes) for start in schedule}

    def running(at: int) -> tuple[int, int] | None:
        """(start, cycle) of the step that runs at a time."""
        return next(((at - c, c) for c in range(cycles) if at - c in schedule), None)

    async def bench(ctx: Any) -> None:
        if loaded:
            for at, r in rng.permutation([(at, r) for at in range(len(words)) for r in range(rows)]).tolist():
                ctx.set(dut.write_addr, at)
                ctx.set(dut.write_data, words[at][r])
                ctx.set(dut.write_en, 1 << r)
                await clock(ctx)
        ctx.set(dut.write_en, 0)
        seen = []
        for now in range(t + dut.LATENCY + 1):
            ctx.set(dut.write_addr, int(rng.integers(len(words))))
            n, step = schedule.get(now - dut.READ_AT, (0, 8))
            read = step < STEPS[blocks[n][1].name][1]
            ctx.set(dut.read_en, read)
            ctx.set(dut.read_addr, blocks[n][2] + step if read else int(rng.integers(len(words))))
            there = running(now - dut.DECODE_AT)
            ctx.set(dut.step, int(rng.integers(8)) if there is None else schedule[there[0]][1])
            how = list(Decode)[rng.integers(3)]
            if there is not None:
                how = DECODE.get(blocks[schedule[there[0]][0]][1].name, Decode.INTEGER)
            ctx.set(dut.decode, how)
            there = running(now - dut.ACT_AT)
            noise = piece(wide_bytes(rng, lanes), 0, bits)
            ctx.set(dut.act, noise if there is None else piece(acts[there[0]], there[1], bits))
            ctx.set(dut.first, int(rng.integers(2)) if there is None else there[1] == 0)
            seen.append((await clock(ctx, dut.sum))[0])
        for start, (n, step) in schedule.items():
            codes, fmt, _ = blocks[n]
            for r in range(rows):
                want = sum(d * a for d, a in zip(digits(codes[r], fmt, step), acts[start], strict=True))
                assert seen[start + cycles - 1 + dut.LATENCY][r] == want, (start, fmt.name, step, r)

    simulate(dut, bench)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_largest_sum(bits: int) -> None:
    """Every lane 15 x 128, the most that a nibble and a low byte can give, either sign, fits."""
    codes = [-INT8.max_magnitude] * BLOCK
    dut = SerialMacro(2, bits, init=[pack_word(codes, INT8, p) for p in range(2)])
    cycles = dut.step_cycles

    async def bench(ctx: Any) -> None:
        for act, want in ((-128, [7 * 128 * 32, 15 * 128 * 32]), (127, [-7 * 127 * 32, -15 * 127 * 32])):
            seen = []
            for now in range(2 * cycles + dut.LATENCY):
                ctx.set(dut.read_en, (now - dut.READ_AT) % cycles == 0)
                ctx.set(dut.read_addr, min(1, max(0, now - dut.READ_AT) // cycles))
                ctx.set(dut.step, min(1, max(0, now - dut.DECODE_AT) // cycles))
                cycle = (now - dut.ACT_AT) % cycles
                ctx.set(dut.act, piece([act] * BLOCK, cycle, bits))
                ctx.set(dut.first, cycle == 0)
                seen.append((await clock(ctx, dut.sum))[0][0])
            assert seen[cycles - 1 + dut.LATENCY :: cycles] == want

    simulate(dut, bench)


def test_the_store_is_a_module_that_a_black_box_can_stand_for(tmp_path: Path) -> None:
    """Words and scales of all tiles are in modules of their own, that declarations of ports replace."""
    config = load_config("asic")
    platform, modules = Sharing(), []
    array = verilog.convert(PeArray(config), name="array", platform=platform, emit_src=False)
    text = "\n".join([array, *platform.modules.values()])
    for depth, width in ((config.words, 128), (config.scales, 20)):
        module = f"expertile_sram_{depth}x{width}"
        start = text.index(f"module {module}(")
        text = text[:start] + text[text.index("endmodule", start) + len("endmodule") :]
        address, data = (depth - 1).bit_length() - 1, width - 1
        text += f"""(* blackbox *) module {module}(input clk, rst, read_en, write_en, input [{address}:0]
            read_addr, write_addr, input [{data}:0] write_data, output [{data}:0] read_data);
            endmodule\n"""
        modules.append(module)
    (tmp_path / "design.v").write_text(text)
    commands = [
        "read_verilog design.v",
        "hierarchy -check -top array",
        "proc",
        "flatten",
        "memory_collect",
        "write_json design.json",
    ]
    run_yosys(commands, tmp_path, "yosys.log")
    cells = json.loads((tmp_path / "design.json").read_text())["modules"]["array"]["cells"].values()
    assert [sum(cell["type"] == module for cell in cells) for module in modules] == [config.tiles] * 2
    deepest = max(
        int(str(cell["parameters"]["SIZE"]), 2) for cell in cells if cell["type"].startswith("$mem")
    )
    assert deepest < min(config.words, config.scales)
