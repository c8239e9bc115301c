"""The front that all normalisers share: sign and magnitude, the leading one moved to the top."""

from amaranth.hdl import C, Module, Mux, Signal, Value, signed

from hw.numerics.scaled import left_normalise

__all__ = ["LEADING_STAGES", "leading_one", "register"]

LEADING_STAGES = 3


def register(m: Module, move: Signal, prefix: str, **signals: Value) -> dict[str, Signal]:
    """One pipeline stage: ``signals`` as registers that follow when ``move`` is on."""
    stage = {name: Signal.like(v, name=f"{prefix}_{name}", reset_less=True) for name, v in signals.items()}
    with m.If(move):
        m.d.sync += [stage[name].eq(v) for name, v in signals.items()]
    return stage


def leading_one(m: Module, move: Signal, value: Value, exp: Value, work: int) -> dict[str, Signal]:
    """Signed ``value * 2**exp`` as sign, mag (``work`` bits, the leading one in bit work - 1 unless zero) and
    top, the exponent of that bit; ``LEADING_STAGES`` moves later."""
    steps = tuple(1 << i for i in reversed(range((work - 1).bit_length())))
    half = len(steps) // 2
    mag = Signal(work)
    m.d.comb += mag.eq(Mux(value < 0, -value, value))
    s = register(m, move, "s1", mag=mag, sign=value < 0, exp=exp)
    shifted, zeros = left_normalise(s["mag"], C(0, len(steps)), steps[:half])
    s = register(m, move, "s2", mag=shifted, zeros=zeros, sign=s["sign"], exp=s["exp"])
    shifted, zeros = left_normalise(s["mag"], s["zeros"], steps[half:])
    top = Signal(signed(len(exp) + 1))
    m.d.comb += top.eq(s["exp"] + (work - 1) - zeros)
    return register(m, move, "s3", mag=shifted, top=top, sign=s["sign"])
