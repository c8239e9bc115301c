"""Activation: beats of gate and up rows to elements of h, as many a cycle as pairs arrive."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED
from hw.pe.clamp import Clamp
from hw.pe.swiglu import SwiGlu
from sw_model.golden import ALPHA_FRACTION

__all__ = ["Activate", "numbers_layout"]


def numbers_layout(lanes: int) -> data.StructLayout:
    """The first ``count`` (1 .. lanes) of ``numbers``; ``last`` of a vector."""
    return data.StructLayout(
        {"numbers": data.ArrayLayout(SCALED, lanes), "count": range(lanes + 1), "last": 1}
    )


class Activate(wiring.Component):
    """h = activation(gate, up): in each lane a :class:`~hw.pe.swiglu.SwiGlu`, and a
    :class:`~hw.pe.clamp.Clamp` before it.

    Parameters
    ----------
    drain : rows that arrive at a time: 1 (gate, up, gate, up, ...) or an even number (pairs)
    clamp : False: without the clamps

    Members
    -------
    i : stream of :func:`numbers_layout`, ``drain`` rows
    o : stream of :func:`numbers_layout`, ``lanes`` elements of h
    clamped, limit : ``enable`` and ``limit`` of the clamps; alpha : see :class:`~hw.pe.swiglu.SwiGlu`

    Throughput: one beat a cycle.
    """

    def __init__(self, drain: int, *, clamp: bool = True) -> None:
        if drain != 1 and drain % 2:
            raise ValueError(f"drain must be 1 or even, not {drain}")
        self._drain = drain
        self._clamp = clamp
        self.lanes = max(1, drain // 2)
        super().__init__(
            {
                "i": In(stream.Signature(numbers_layout(drain))),
                "o": Out(stream.Signature(numbers_layout(self.lanes))),
                "clamped": In(1),
                "limit": In(SCALED),
                "alpha": In(ALPHA_FRACTION + 1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat, whole = self.i.payload, Signal()
        count = Signal(range(self.lanes + 1))
        if self._drain == 1:  # the gate waits for its up
            gate, second = Signal(SCALED, reset_less=True), Signal()
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += [second.eq(~second), gate.eq(beat.numbers[0])]
            pairs = [(gate, beat.numbers[0])]
            m.d.comb += [whole.eq(self.i.valid & second), count.eq(1)]
        else:
            pairs = [(beat.numbers[2 * p], beat.numbers[2 * p + 1]) for p in range(self.lanes)]
            m.d.comb += [whole.eq(self.i.valid), count.eq(beat.count >> 1)]

        # The lanes go in step, so one of them speaks for all.
        user = Cat(beat.last, count)
        for p, (gate, up) in enumerate(pairs):
            m.submodules[f"swiglu{p}"] = swiglu = SwiGlu(user=len(user))
            first = swiglu.i
            if self._clamp:
                m.submodules[f"clamp{p}"] = clamp = Clamp(user=len(user))
                wiring.connect(m, clamp.o, swiglu.i)
                m.d.comb += [clamp.enable.eq(self.clamped), clamp.limit.eq(self.limit)]
                first = clamp.i
            m.d.comb += [
                first.payload.gate.eq(gate),
                first.payload.up.eq(up),
                first.payload.user.eq(user),
                first.valid.eq(whole),
                swiglu.alpha.eq(self.alpha),
                swiglu.o.ready.eq(self.o.ready),
                self.o.payload.numbers[p].eq(swiglu.o.payload.number),
            ]
            if p == 0:
                ready = first.ready if self._drain > 1 else first.ready | ~second
                m.d.comb += [
                    self.i.ready.eq(ready),
                    self.o.valid.eq(swiglu.o.valid),
                    Cat(self.o.payload.last, self.o.payload.count).eq(swiglu.o.payload.user),
                ]
        return m
