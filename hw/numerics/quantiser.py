"""Block quantiser: a token's numbers to INT8 (and INT16) blocks with power-of-two exponents."""

from itertools import pairwise

from amaranth.hdl import Array as Choice
from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
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

__all__ = ["BlockQuantiser", "code_layout", "vectors_layout"]

LANE_BITS = (BLOCK - 1).bit_length()


def vectors_layout(user: int = 1) -> data.StructLayout:
    """A token: ``count`` vectors; ``alone``: its only vector is the block that biases ride on."""
    return data.StructLayout({"count": 8, "alone": 1, "user": user})


def code_layout(blocks: int, give: int = 1) -> data.StructLayout:
    """``give`` quantised neighbours: where the first belongs, their codes, and the shifts of their block."""
    codes = data.ArrayLayout(signed(8), give)
    return data.StructLayout(
        {
            "lane": LANE_BITS,
            "block": max(1, (blocks - 1).bit_length()),
            "code8": codes,
            "high": codes,
            "low": codes,
            "shift8": SHIFT_BITS,
            "shift16": SHIFT_BITS,
        }
    )


class BlockQuantiser(wiring.Component):
    """Collect a token, then give it out again quantised, while the next one is collected.

        X[b]    = max(largest top of block b, token_top - spread)
        code8   = clip(round_even(x * 2**(6 - X)), +-127)        shift8  = X - (token_top - spread)
        code16  = round_even(x * 2**(13 - X16)) = 256 * high + low,  low in -128 .. 127

    where X16 and shift16 come from ``router_spread``. A token may be several vectors (the h of all experts);
    each is filled up with zeros to a whole block, and all share one ``token_top``.

    Parameters
    ----------
    blocks : most blocks of a token
    spread, router_spread : octaves kept below the token's largest exponent
    floor : the top that stands for "nothing yet" (-126 for float32 tokens, TOP_MIN for results)
    take, give : elements a cycle in and out, powers of two, take <= give <= 32
    ahead : blocks of the next token that there is room for besides (at least)
    user : bits that accompany a token

    Members
    -------
    i : stream of {numbers: ``take`` x SCALED, count (of them that belong to the vector, from the first),
        last (of a vector)}; only the last beat of a vector may be short
    vectors : stream of :func:`vectors_layout`, an item a token; it may come late, and is taken when the token
        is whole
    discard : with a beat: it and all of its token so far are forgotten
    constants : append the block that biases ride on to every vector
    grant : the place where the codes go is free
    code, code_valid : ``give`` elements a cycle, blocks in the order they came; see :func:`code_layout`
    token_top, token_user : largest top, user bits of the token being given out
    done : the last code of the token is in ``code`` (one cycle)

    Latency: one cycle a beat in, then ``LATENCY`` + 2 and one a beat out. Equals
    :func:`sw_model.formats.quantise_act8` and ``quantise_act16``.
    """

    LATENCY = 5

    def __init__(
        self,
        *,
        blocks: int,
        spread: int,
        router_spread: int,
        floor: int = TOP_MIN,
        take: int = 1,
        give: int = 1,
        ahead: int = 0,
        user: int = 1,
    ) -> None:
        for name, value in (("blocks", blocks), ("spread", spread), ("router_spread", router_spread)):
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        if give not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"give must be a power of two up to {BLOCK}, not {give}")
        if take not in (1, 2, 4) or take > give:
            raise ValueError(f"take must be 1, 2 or 4 and at most give = {give}, not {take}")
        self._blocks = blocks
        self._spread = spread
        self._router_spread = router_spread
        self._floor = floor
        self._take = take
        self._give = give
        self._user = user
        self._ring = 1 << (blocks + ahead - 1).bit_length()  # blocks that are kept
        beat = {"numbers": data.ArrayLayout(SCALED, take), "count": range(take + 1), "last": 1}
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout(beat))),
                "vectors": In(stream.Signature(vectors_layout(user))),
                "discard": In(1),
                "constants": In(1),
                "grant": In(1),
                "code": Out(code_layout(blocks, give)),
                "code_valid": Out(1),
                "token_top": Out(signed(TOP_BITS)),
                "token_user": Out(user),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self._ring * BLOCK
        # Elements stored and given out so far, modulo twice the ring: full when they differ by its size.
        head, tail = Signal(range(2 * size)), Signal(range(2 * size))
        # A complete token, from when it waits until its last element is given out.
        whole = Signal(
            data.StructLayout({"valid": 1, "end": len(head), "top": signed(TOP_BITS), "user": self._user})
        )
        stored, tops = self._collect(m, head, tail, whole)

        issue, last = Signal(), Signal()
        start = Signal.like(head)
        m.d.comb += last.eq((tail + self._give)[: len(tail)] == whole.end)
        with m.FSM():
            with m.State("WAIT"):
                with m.If(whole.valid & self.grant):
                    m.d.sync += [
                        start.eq(tail),
                        self.token_top.eq(whole.top),
                        self.token_user.eq(whole.user),
                    ]
                    m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += issue.eq(1)
                m.d.sync += tail.eq(tail + self._give)
                with m.If(last):
                    m.d.sync += whole.valid.eq(0)
                    m.next = "FINISH"
            with m.State("FINISH"):
                with m.If(self.done):
                    m.next = "WAIT"
        self._give_out(m, issue, last, tail, tail - start, stored, tops)
        return m

    def _collect(
        self, m: Module, head: Signal, tail: Signal, whole: data.View
    ) -> tuple[list[Memory], Memory]:
        take, give, floor = self._take, self._give, self._floor
        depth = self._ring * BLOCK // give
        stored = [
            Memory(shape=SCALED, depth=max(2, depth), init=[], attrs={"no_rw_check": 1}) for _ in range(give)
        ]
        tops = Memory(shape=signed(TOP_BITS), depth=max(2, self._ring), init=[], attrs={"no_rw_check": 1})
        m.submodules.tops = tops
        lane = head[:LANE_BITS]
        at_block_end = lane >= BLOCK - take
        block_top = Signal(signed(TOP_BITS), init=floor)
        token_top = Signal(signed(TOP_BITS), init=floor)
        seen, constant = Signal(8), Signal()
        begin = Signal.like(head)  # of the token being collected
        complete, full, store = Signal(), Signal(), Signal()
        m.d.comb += [
            complete.eq(self.vectors.valid & (seen == self.vectors.payload.count)),
            full.eq((head ^ tail) == self._ring * BLOCK),
            self.vectors.ready.eq(complete & ~whole.valid),
        ]
        with m.If(self.vectors.ready):
            m.d.sync += [
                whole.valid.eq(1),
                whole.end.eq(head),
                begin.eq(head),
                whole.top.eq(token_top),
                whole.user.eq(self.vectors.payload.user),
                token_top.eq(floor),
                seen.eq(0),
            ]

        numbers = [Signal(SCALED, name=f"number{j}") for j in range(take)]
        highest: Value = numbers[0].top
        for number in numbers[1:]:
            highest = Mux(number.top > highest, number.top, highest)
        beat_top, largest = Signal(signed(TOP_BITS)), Signal(signed(TOP_BITS))
        top_write = tops.write_port()
        m.d.comb += [
            beat_top.eq(highest),
            largest.eq(Mux(beat_top > block_top, beat_top, block_top)),
            top_write.addr.eq(head[LANE_BITS:]),
            top_write.data.eq(largest),
            top_write.en.eq(store & at_block_end),
        ]
        for j, memory in enumerate(stored):
            m.submodules[f"numbers{j}"] = memory
            write = memory.write_port()
            m.d.comb += [
                write.addr.eq(head[give.bit_length() - 1 :]),
                write.data.eq(numbers[j % take]),
                write.en.eq(store & ((head & (give - 1)) == j // take * take)),
            ]
        with m.If(store):
            m.d.sync += [head.eq(head + take), block_top.eq(Mux(at_block_end, floor, largest))]
            with m.If(beat_top > token_top):
                m.d.sync += token_top.eq(beat_top)

        alone = self.vectors.valid & self.vectors.payload.alone & (seen == 0)
        with m.FSM():
            with m.State("COLLECT"):
                m.d.comb += [
                    self.i.ready.eq(~complete & ~full & ~alone),
                    store.eq(self.i.valid & self.i.ready & ~self.discard),
                ]
                with m.If(self.i.valid & self.i.ready & self.discard):
                    m.d.sync += [head.eq(begin), token_top.eq(floor), block_top.eq(floor), seen.eq(0)]
                for j, number in enumerate(numbers):
                    m.d.comb += number.top.eq(floor)
                    with m.If(j < self.i.payload.count):
                        m.d.comb += number.eq(self.i.payload.numbers[j])
                with m.If(alone):
                    m.d.sync += constant.eq(1)
                    m.next = "CONSTANTS"
                with m.Elif(store & self.i.payload.last):
                    m.d.sync += constant.eq(self.constants)
                    with m.If(~at_block_end):
                        m.next = "FILL"
                    with m.Elif(self.constants):
                        m.next = "CONSTANTS"
                    with m.Else():
                        m.d.sync += seen.eq(seen + 1)
            with m.State("FILL"):
                m.d.comb += [*[n.top.eq(floor) for n in numbers], store.eq(~full)]
                with m.If(store & at_block_end):
                    m.next = "COLLECT"
                    with m.If(constant):
                        m.next = "CONSTANTS"
                    with m.Else():
                        m.d.sync += seen.eq(seen + 1)
            with m.State("CONSTANTS"):
                biases = Choice(C(top, signed(TOP_BITS)) for top in BIAS_TOPS)
                for j, number in enumerate(numbers):
                    m.d.comb += [
                        number.top.eq(biases[(lane + j)[: (len(BIAS_TOPS) - 1).bit_length()]]),
                        number.mag.eq(1 << (MAG_BITS - 1)),
                    ]
                m.d.comb += store.eq(~full)
                with m.If(store & (lane == len(BIAS_TOPS) - take)):
                    m.d.sync += constant.eq(0)
                    m.next = "FILL"
        return stored, tops

    def _give_out(
        self, m: Module, issue: Signal, last: Signal, tail: Signal, place: Value, stored: list, tops: Memory
    ) -> None:
        top_read = tops.read_port()
        m.d.comb += [top_read.addr.eq(tail[LANE_BITS:]), top_read.en.eq(issue)]
        valid, last_one = Signal(self.LATENCY), Signal(self.LATENCY)
        m.d.sync += [valid.eq(Cat(issue, valid[:-1])), last_one.eq(Cat(issue & last, last_one[:-1]))]
        m.d.comb += [self.code_valid.eq(valid[-1]), self.done.eq(last_one[-1])]
        at = [
            Signal(range(self._blocks * BLOCK), name=f"at{i}", reset_less=True) for i in range(self.LATENCY)
        ]
        m.d.sync += [b.eq(a) for a, b in pairwise([place, *at])]
        m.d.comb += [
            self.code.lane.eq(at[-1][:LANE_BITS]),
            self.code.block.eq(at[-1][LANE_BITS:]),
        ]

        # Stage 2: exponents of the block, as seen from the LSB of a code; stage 3: shift of the element.
        most = MAG_BITS + 1
        lsb = {}
        for name, spread, fraction in (
            ("8", self._spread, ACT8_FRACTION),
            ("16", self._router_spread, ACT16_FRACTION),
        ):
            lowest = Signal(signed(TOP_BITS + 1), name=f"lowest{name}", reset_less=True)
            above = Signal(signed(TOP_BITS + 2), name=f"above{name}")
            shifts = [Signal(SHIFT_BITS, name=f"shift{name}_{i}", reset_less=True) for i in range(3)]
            lsb[name] = Signal(signed(TOP_BITS + 2), name=f"lsb{name}", reset_less=True)
            m.d.comb += above.eq(top_read.data - lowest)
            m.d.sync += [
                lowest.eq(self.token_top - spread),
                lsb[name].eq(Mux(above > 0, top_read.data, lowest) + (MAG_BITS - 1 - fraction)),
                shifts[0].eq(Mux(above > 0, above, 0)),
                *[b.eq(a) for a, b in pairwise(shifts)],
                self.code[f"shift{name}"].eq(shifts[-1]),
            ]

        for j, memory in enumerate(stored):
            read = memory.read_port()
            m.d.comb += [read.addr.eq(tail[self._give.bit_length() - 1 :]), read.en.eq(issue)]
            number = Signal(SCALED, name=f"held{j}", reset_less=True)
            mag = Signal(MAG_BITS, name=f"mag{j}", reset_less=True)
            sign = [Signal(name=f"sign{j}_{i}", reset_less=True) for i in range(2)]
            moved = {}
            m.d.sync += [
                number.eq(read.data),
                mag.eq(number.mag),
                sign[0].eq(number.sign),
                sign[1].eq(sign[0]),
            ]
            for name, exponent in lsb.items():
                distance = Signal(TOP_BITS + 2, name=f"distance{name}_{j}")
                shift = Signal(range(most + 1), name=f"by{name}_{j}", reset_less=True)
                moved[name] = Signal(MAG_BITS + 2, name=f"moved{name}_{j}", reset_less=True)
                m.d.comb += distance.eq(exponent - number.top)
                m.d.sync += [
                    shift.eq(Mux(distance > most, most, distance)),
                    moved[name].eq(shift_right_sticky(mag, shift, most)),
                ]
            self._round(m, moved["8"], moved["16"], sign[1], j)

    def _round(self, m: Module, moved8: Signal, moved16: Signal, negative: Signal, j: int) -> None:
        """Round, saturate, and the sign."""
        rounded8 = Signal(MAG_BITS, name=f"rounded8_{j}")
        rounded16 = Signal(signed(ACT16_FRACTION + 4), name=f"rounded16_{j}")
        code16 = Signal(signed(ACT16_FRACTION + 4), name=f"code16_{j}")
        low = Signal(signed(ACT16_LOW_BITS), name=f"low_{j}")
        m.d.comb += [
            rounded8.eq(round_even(moved8, 2)),
            rounded16.eq(round_even(moved16[: ACT16_FRACTION + 4], 2)),
            code16.eq(Mux(negative, -rounded16, rounded16)),
            low.eq(code16[:ACT16_LOW_BITS]),
        ]
        size8 = Mux(rounded8 > ACT8_MAX, C(ACT8_MAX, 8), rounded8[:8])
        m.d.sync += [
            self.code.code8[j].eq(Mux(negative, -size8, size8)),
            self.code.low[j].eq(low),
            self.code.high[j].eq((code16 - low) >> ACT16_LOW_BITS),
        ]
