"""The scalar processor that does in a program what other cores have blocks for (:mod:`hw.micro.isa`)."""

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.micro.assembler import Program
from hw.micro.isa import (
    ADDRESS_BITS,
    COUNT_BITS,
    DIV_STEPS,
    FIRST_PORT,
    MUL_STEPS,
    PROGRAM_BITS,
    Mode,
    Op,
)

__all__ = ["Processor"]

WORD, Q_BITS, STACK = 64, 24, 4
PORT_BITS = 5
FAST = 8  # bits that a long shift goes at once


class _Next(enum.Enum, shape=3):
    """Where the accumulator's next value comes from."""

    SUM = 0
    LOGIC = 1
    RIGHT = 2
    RIGHT_FAST = 3
    LEFT_FAST = 4


class Processor(wiring.Component):
    """A 64-bit accumulator machine with a memory of data and one of instructions.

    Parameters
    ----------
    program : what it runs, and its data as it wakes up

    Members
    -------
    port : number of a port less that of the first one
    get : the port is read: ``value`` is taken (one cycle)
    put : the port is written: ``data`` holds (one cycle)
    wait : the port is not ready; neither ``get`` nor ``put`` comes while it is
    q, count : registers Q and C
    asks, gives : the port is about to be read, or written, as long as it has to wait

    Jumps, RET and INX take a cycle, ST two, other instructions three, and what :class:`~hw.micro.isa.Op`
    says of them.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        super().__init__(
            {
                "port": Out(PORT_BITS),
                "asks": Out(1),
                "gives": Out(1),
                "get": Out(1),
                "put": Out(1),
                "wait": In(1),
                "value": In(WORD),
                "data": Out(WORD),
                "q": Out(Q_BITS),
                "count": Out(7),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.code = code = Memory(
            shape=16, depth=len(self._program.code), init=list(self._program.code), attrs={"no_rw_check": 1}
        )
        m.submodules.words = words = Memory(
            shape=WORD, depth=1 << ADDRESS_BITS, init=list(self._program.data), attrs={"no_rw_check": 1}
        )
        fetch, read, write = code.read_port(), words.read_port(), words.write_port()

        a, q, x = Signal(WORD), self.q, Signal(ADDRESS_BITS)
        guard, sticky = Signal(), Signal()
        pc, onwards, following = Signal(PROGRAM_BITS), Signal(PROGRAM_BITS), Signal(PROGRAM_BITS)
        stack = [Signal(PROGRAM_BITS, name=f"stack{i}") for i in range(STACK)]
        count, left = self.count, Signal(COUNT_BITS)

        instruction = fetch.data
        op, mode = instruction[PROGRAM_BITS:], instruction[ADDRESS_BITS:PROGRAM_BITS]
        place = Signal(ADDRESS_BITS)
        m.d.comb += [
            place.eq(instruction[:ADDRESS_BITS] + Mux(mode == Mode.INDEXED, x, 0)),
            read.addr.eq(place),
            write.addr.eq(place),
            write.data.eq(a),
            fetch.addr.eq(following),
            onwards.eq(pc + 1),
            following.eq(pc),
            self.data.eq(a),
        ]
        m.d.sync += pc.eq(following)

        # The operand, or its complement where it is taken away, waits in a register: carries are slow.
        held, at_port = Signal(ADDRESS_BITS), Signal()
        found, operand = Signal(WORD), Signal(WORD)
        immediate, away = mode == Mode.IMMEDIATE, (op == Op.SUB) | (op == Op.DIV)
        m.d.sync += [held.eq(place), at_port.eq((place >= FIRST_PORT) & ~immediate)]
        m.d.comb += [
            self.port.eq(held[:PORT_BITS]),
            found.eq(Mux(immediate, instruction[:ADDRESS_BITS], Mux(at_port, self.value, read.data))),
        ]

        # The adder: A, or twice A in a step, and the operand or 0. What it does is known a cycle ahead.
        double, take, carry = Signal(), Signal(), Signal()
        base, total, logic = Signal(WORD), Signal(WORD), Signal(WORD)
        m.d.comb += [
            base.eq(Mux(double, a << 1, a)),
            total.eq(base + (operand & take.replicate(WORD)) + carry),
        ]
        with m.Switch(op[:3]):
            for which, value in ((Op.AND, a & operand), (Op.OR, a | operand), (Op.XOR, a ^ operand)):
                with m.Case(which & 7):
                    m.d.comb += logic.eq(value)
            with m.Default():
                m.d.comb += logic.eq(operand)

        chosen, load = Signal(_Next), Signal()
        with m.If(load):
            with m.Switch(chosen):
                for which, value in (
                    (_Next.SUM, total),
                    (_Next.LOGIC, logic),
                    (_Next.RIGHT, a[1:]),
                    (_Next.RIGHT_FAST, a[FAST:]),
                    (_Next.LEFT_FAST, a << FAST),
                ):
                    with m.Case(which):
                        m.d.sync += a.eq(value)

        negative, zero, far = a[-1], a == 0, ~a[-FAST:].any()
        fast, shifts = left >= FAST, (op == Op.SHL) | (op == Op.SHR)
        steps = shifts | (op == Op.NRM) | (op == Op.MUL) | (op == Op.DIV)
        jump = Signal()
        with m.Switch(op[:3]):
            for which, taken in ((Op.JZ, zero), (Op.JNZ, ~zero), (Op.JN, negative), (Op.JP, ~negative)):
                with m.Case(which & 7):
                    m.d.comb += jump.eq(taken)
            with m.Default():
                m.d.comb += jump.eq(1)

        def finish() -> None:
            m.d.comb += following.eq(onwards)
            m.next = "DECODE"

        with m.FSM():
            with m.State("WAKE"):
                m.next = "DECODE"
            with m.State("DECODE"):
                m.next = "OPERAND"
                with m.If(op[3:] == Op.JMP >> 3):
                    m.d.comb += following.eq(Mux(jump, instruction[:PROGRAM_BITS], onwards))
                    m.next = "DECODE"
                    with m.If(op == Op.CALL):
                        m.d.sync += Cat(stack).eq(Cat(onwards, *stack[:-1]))
                with m.Elif(op == Op.RET):
                    m.d.comb += following.eq(stack[0])
                    m.d.sync += Cat(stack).eq(Cat(stack[1:], C(0, PROGRAM_BITS)))
                    m.next = "DECODE"
                with m.Elif(op == Op.INX):
                    m.d.sync += x.eq(x + 1)
                    finish()
            with m.State("OPERAND"):
                m.d.comb += [
                    self.gives.eq(at_port & (op == Op.ST)),
                    self.asks.eq(at_port & (op != Op.ST)),
                    self.get.eq(self.asks & ~self.wait),
                    self.put.eq(self.gives & ~self.wait),
                ]
                m.d.sync += [
                    operand.eq(found ^ away.replicate(WORD)),
                    take.eq(away | (op == Op.ADD)),
                    carry.eq(away | ((op == Op.RND) & guard & (sticky | a[0]))),
                    double.eq(0),
                ]
                with m.If(~(at_port & self.wait)):
                    m.next = "EXECUTE"
                    with m.If(op == Op.ST):
                        m.d.comb += write.en.eq(~at_port)
                        finish()
            with m.State("EXECUTE"):
                m.d.sync += [left.eq(operand), double.eq(1)]
                with m.If(steps):
                    m.next = "STEP"
                with m.Else():
                    finish()
                with m.Switch(op):
                    with m.Case(Op.LD, Op.AND, Op.OR, Op.XOR):
                        m.d.comb += [load.eq(1), chosen.eq(_Next.LOGIC)]
                    with m.Case(Op.ADD, Op.SUB, Op.RND):
                        m.d.comb += load.eq(1)
                    with m.Case(Op.LDX):
                        m.d.sync += x.eq(operand)
                    with m.Case(Op.LDQ):
                        m.d.sync += q.eq(operand)
                    with m.Case(Op.SHL, Op.NRM):
                        m.d.sync += count.eq(0)
                    with m.Case(Op.SHR):
                        m.d.sync += [guard.eq(0), sticky.eq(0)]
                    with m.Case(Op.MUL):
                        m.d.sync += [a.eq(0), left.eq(MUL_STEPS), take.eq(q[-1])]
                    with m.Case(Op.DIV):
                        m.d.sync += left.eq(2 * DIV_STEPS)
            with m.State("STEP"):
                with m.If(Mux(op == Op.NRM, negative, left == 0)):
                    finish()
                with m.Else():
                    m.d.comb += load.eq(1)
                    m.d.sync += left.eq(left - Mux(fast & shifts, FAST, 1))
                    with m.Switch(op):
                        with m.Case(Op.SHL):
                            m.d.comb += chosen.eq(Mux(fast, _Next.LEFT_FAST, _Next.SUM))
                        with m.Case(Op.SHR):
                            m.d.comb += chosen.eq(Mux(fast, _Next.RIGHT_FAST, _Next.RIGHT))
                            m.d.sync += [
                                guard.eq(Mux(fast, a[FAST - 1], a[0])),
                                sticky.eq(sticky | guard | (fast & a[: FAST - 1].any())),
                            ]
                        with m.Case(Op.NRM):
                            m.d.comb += chosen.eq(Mux(far, _Next.LEFT_FAST, _Next.SUM))
                            m.d.sync += count.eq(count + Mux(far, FAST, 1))
                        with m.Case(Op.MUL):
                            m.d.sync += [q.eq(q << 1), take.eq(q[-2])]
                        with m.Case(Op.DIV):  # first whether M can be taken away, then it is
                            with m.If(~left[0]):
                                m.d.comb += load.eq(0)
                                m.d.sync += [take.eq(~total[-1]), carry.eq(~total[-1])]
                            with m.Else():
                                m.d.sync += [q.eq(Cat(take, q)), take.eq(1), carry.eq(1)]
        return m
