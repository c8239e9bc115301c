"""Block quantiser: a token's numbers to INT8 (and INT16) blocks with power-of-two exponents."""

from amaranth.hdl import Array as Choice
from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED, round_even, shift_right_sticky
from sw_model.formats import (
    ACT8_FRACTION,
    ACT8_MAX,
    ACT16_FRACTION,
    ACT16_LOW_BITS,
    BIAS_TOPS,
    BLOCK,
    MAG_BITS,
    SHIFT_BITS,
    TOP_BITS,
    TOP_MIN,
)

__all__ = ["BlockQuantiser", "code_layout"]

LANE_BITS = (BLOCK - 1).bit_length()


def code_layout(blocks: int) -> data.StructLayout:
    """One quantised element: where it belongs, its codes, and the shifts of its block."""
    return data.StructLayout(
        {
            "lane": LANE_BITS,
            "block": max(1, (blocks - 1).bit_length()),
            "code8": signed(8),
            "high": signed(8),
            "low": signed(8),
            "shift8": SHIFT_BITS,
            "shift16": SHIFT_BITS,
        }
    )


class BlockQuantiser(wiring.Component):
    """Collect a token, then give it out again quantised.

        X[b]    = max(largest top of block b, token_top - spread)
        code8   = clip(round_even(x * 2**(6 - X)), +-127)        shift8  = X - (token_top - spread)
        code16  = round_even(x * 2**(13 - X16)) = 256 * high + low,  low in -128 .. 127

    where X16 and shift16 come from ``router_spread``. A token may be several vectors (the h of all experts);
    each is filled up with zeros to a whole block, and all share one ``token_top``.

    Parameters
    ----------
    blocks : capacity in blocks
    spread, router_spread : octaves kept below the token's largest exponent
    floor : the top that stands for "nothing yet" (-126 for float32 tokens, TOP_MIN for results)

    Members
    -------
    i : stream of {number SCALED, last (of a vector)}
    vectors, vectors_known : vectors of the token; may become known while they come
    constants : append the block that biases ride on to every vector
    alone : the token's only vector is that block
    discard : with an element: it and all of its token so far are forgotten
    grant : the place where the codes go is free
    code, code_valid : one element a cycle, blocks in the order they came; see :func:`code_layout`
    token_top : largest top of the token being given out
    done : the last code of the token is in ``code`` (one cycle)

    Latency: one cycle an element in, then ``LATENCY`` + one an element out. ``i`` is not ready while a
    token is given out. Equals :func:`sw_model.formats.quantise_act8` and ``quantise_act16``.
    """

    LATENCY = 4

    def __init__(self, *, blocks: int, spread: int, router_spread: int, floor: int = TOP_MIN) -> None:
        for name, value in (("blocks", blocks), ("spread", spread), ("router_spread", router_spread)):
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        self._blocks = blocks
        self._spread = spread
        self._router_spread = router_spread
        self._floor = floor
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"number": SCALED, "last": 1}))),
                "vectors": In(8),
                "vectors_known": In(1),
                "alone": In(1),
                "discard": In(1),
                "constants": In(1),
                "grant": In(1),
                "code": Out(code_layout(blocks)),
                "code_valid": Out(1),
                "token_top": Out(signed(TOP_BITS)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = self._blocks * BLOCK
        m.submodules.numbers = numbers = Memory(shape=SCALED, depth=depth, init=[], attrs={"no_rw_check": 1})
        m.submodules.tops = tops = Memory(
            shape=signed(TOP_BITS), depth=max(2, self._blocks), init=[], attrs={"no_rw_check": 1}
        )
        write, read = numbers.write_port(), numbers.read_port()
        top_write, top_read = tops.write_port(), tops.read_port()

        address = Signal(range(depth + 1))  # elements so far, then the element being given out
        count = Signal.like(address)
        lane = address[:LANE_BITS]
        at_block_end = lane.all()
        block_top = Signal(signed(TOP_BITS), init=self._floor)
        token_top = Signal(signed(TOP_BITS), init=self._floor)
        seen, constant = Signal(8), Signal()
        complete = Signal()
        m.d.comb += complete.eq(self.vectors_known & (seen == self.vectors))

        number = Signal(SCALED)
        store = Signal()
        largest = Signal(signed(TOP_BITS))
        m.d.comb += [
            largest.eq(Mux(number.top > block_top, number.top, block_top)),
            write.addr.eq(address),
            write.data.eq(number),
            write.en.eq(store),
            top_write.addr.eq(address[LANE_BITS:]),
            top_write.data.eq(largest),
            top_write.en.eq(store & at_block_end),
        ]
        with m.If(store):
            m.d.sync += [
                address.eq(address + 1),
                block_top.eq(Mux(at_block_end, self._floor, largest)),
            ]
            with m.If(number.top > token_top):
                m.d.sync += token_top.eq(number.top)

        issue = Signal()
        with m.FSM():
            with m.State("COLLECT"):
                m.d.comb += [
                    self.i.ready.eq(~complete),
                    number.eq(self.i.payload.number),
                    store.eq(self.i.valid & ~complete & ~self.discard),
                ]
                with m.If(complete):
                    m.next = "WAIT"
                with m.Elif(self.i.valid & self.discard):
                    m.d.sync += [
                        address.eq(0),
                        token_top.eq(self._floor),
                        block_top.eq(self._floor),
                        seen.eq(0),
                    ]
                with m.Elif(self.alone):
                    m.d.sync += constant.eq(1)
                    m.next = "CONSTANTS"
                with m.Elif(self.i.valid & self.i.payload.last):
                    m.d.sync += constant.eq(self.constants)
                    with m.If(~at_block_end):
                        m.next = "FILL"
                    with m.Elif(self.constants):
                        m.next = "CONSTANTS"
                    with m.Else():
                        m.d.sync += seen.eq(seen + 1)
            with m.State("FILL"):
                m.d.comb += [number.top.eq(self._floor), store.eq(1)]
                with m.If(at_block_end):
                    m.next = "COLLECT"
                    with m.If(constant):
                        m.next = "CONSTANTS"
                    with m.Else():
                        m.d.sync += seen.eq(seen + 1)
            with m.State("CONSTANTS"):
                m.d.comb += [
                    number.top.eq(Choice(C(top, signed(TOP_BITS)) for top in BIAS_TOPS)[lane[:2]]),
                    number.mag.eq(1 << (MAG_BITS - 1)),
                    store.eq(1),
                ]
                with m.If(lane == len(BIAS_TOPS) - 1):
                    m.d.sync += constant.eq(0)
                    m.next = "FILL"
            with m.State("WAIT"):
                with m.If(self.grant):
                    m.d.sync += [count.eq(address), address.eq(0), self.token_top.eq(token_top)]
                    m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += issue.eq(1)
                m.d.sync += address.eq(address + 1)
                with m.If(address + 1 == count):
                    m.d.sync += [
                        address.eq(0),
                        token_top.eq(self._floor),
                        block_top.eq(self._floor),
                        seen.eq(0),
                    ]
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(self.done):
                    m.next = "COLLECT"

        m.d.comb += [
            read.addr.eq(address),
            top_read.addr.eq(address[LANE_BITS:]),
            read.en.eq(1),
            top_read.en.eq(1),
        ]
        self._give(m, issue, address, count, read.data, top_read.data)
        return m

    def _give(self, m, issue, address, count, number, block_top) -> None:
        valid, last = Signal(self.LATENCY), Signal(self.LATENCY)
        m.d.sync += [
            valid.eq(Cat(issue, valid[:-1])),
            last.eq(Cat(issue & (address + 1 == count), last[:-1])),
        ]
        m.d.comb += [self.code_valid.eq(valid[-1]), self.done.eq(last[-1])]
        place = [Signal.like(address, name=f"place{i}", reset_less=True) for i in range(self.LATENCY)]
        m.d.sync += [b.eq(a) for a, b in zip([address, *place], place, strict=False)]

        # Stage 2: exponents of the block and the shift of the element.
        sign = [Signal(name=f"sign{i}", reset_less=True) for i in range(2)]
        mag = Signal(MAG_BITS, reset_less=True)
        m.d.sync += [mag.eq(number.mag), sign[0].eq(number.sign), sign[1].eq(sign[0])]

        def stage2(spread: int, fraction: int, name: str) -> tuple[Signal, Signal]:
            lowest = Signal(signed(TOP_BITS + 1), name=f"lowest_{name}")
            exponent = Signal(signed(TOP_BITS + 1), name=f"exponent_{name}")
            shift = Signal(range(MAG_BITS + 2), name=f"shift_{name}", reset_less=True)
            distance = Signal(TOP_BITS + 2, name=f"distance_{name}")
            m.d.comb += [
                lowest.eq(self.token_top - spread),
                exponent.eq(Mux(block_top > lowest, block_top, lowest)),
                distance.eq(MAG_BITS - 1 - fraction + exponent - number.top),
            ]
            m.d.sync += shift.eq(Mux(distance > MAG_BITS + 1, MAG_BITS + 1, distance))
            above = [Signal(SHIFT_BITS, name=f"above{i}_{name}", reset_less=True) for i in range(3)]
            m.d.sync += [above[0].eq(exponent - lowest), above[1].eq(above[0]), above[2].eq(above[1])]
            return shift, above[2]

        shift8, above8 = stage2(self._spread, ACT8_FRACTION, "8")
        shift16, above16 = stage2(self._router_spread, ACT16_FRACTION, "16")

        # Stage 3: shift; stage 4: round, saturate, sign.
        most = MAG_BITS + 1
        moved8 = Signal(MAG_BITS + 2, reset_less=True)
        moved16 = Signal(MAG_BITS + 2, reset_less=True)
        m.d.sync += [
            moved8.eq(shift_right_sticky(mag, shift8, most)),
            moved16.eq(shift_right_sticky(mag, shift16, most)),
        ]
        rounded8 = Signal(MAG_BITS)
        rounded16 = Signal(signed(ACT16_FRACTION + 4))
        code16 = Signal(signed(ACT16_FRACTION + 4))
        low = Signal(signed(ACT16_LOW_BITS))
        m.d.comb += [
            rounded8.eq(round_even(moved8, 2)),
            rounded16.eq(round_even(moved16[: ACT16_FRACTION + 4], 2)),
            code16.eq(Mux(sign[1], -rounded16, rounded16)),
            low.eq(code16[:ACT16_LOW_BITS]),
        ]
        size8 = Mux(rounded8 > ACT8_MAX, C(ACT8_MAX, 8), rounded8[:8])
        m.d.sync += [
            self.code.code8.eq(Mux(sign[1], -size8, size8)),
            self.code.low.eq(low),
            self.code.high.eq((code16 - low) >> ACT16_LOW_BITS),
        ]
        m.d.comb += [
            self.code.lane.eq(place[-1][:LANE_BITS]),
            self.code.block.eq(place[-1][LANE_BITS:]),
            self.code.shift8.eq(above8),
            self.code.shift16.eq(above16),
        ]
