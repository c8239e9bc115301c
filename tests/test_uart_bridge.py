# amaranth: UnusedElaboratable=no
"""Frames, and the bridge: registers, weights, tokens through a dummy core, and all that is refused."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from hw.host.axil import SIGNALS, RegisterFile
from hw.host.bridge import Bridge
from hw.host.frames import Decoder, Error, Frame, Kind, encode
from hw.host.framing import FrameReceiver
from hw.host.registers import ID_VALUE, address

CAPACITY, TIMEOUT = 16, 200


async def ticks(ctx, count):
    """Plain ticks: a background testbench may be left in the middle of them when the simulation ends."""
    for _ in range(count):
        await ctx.tick()


async def until(ctx, condition, *signals):
    """Ticks up to and with the first edge that sees ``condition``; the values of ``signals`` there."""
    while True:
        _, _, seen, *values = await ctx.tick().sample(condition, *signals)
        if seen:
            return values


class Host:
    """The far end of the byte link: sends bytes at a given pace, collects frames."""

    def __init__(self, bridge, pace=3):
        self._bridge = bridge
        self._pace = pace
        self._decoder = Decoder()
        self.frames = []

    async def collect(self, ctx):
        """Background: take whatever comes."""
        ctx.set(self._bridge.tx.ready, 1)
        async for _, _, valid, byte in ctx.tick().sample(self._bridge.tx.valid, self._bridge.tx.payload):
            if valid:
                self.frames += self._decoder.feed([byte])

    async def send(self, ctx, data):
        for byte in data:
            ctx.set(self._bridge.rx.payload, byte)
            ctx.set(self._bridge.rx.valid, 1)
            await until(ctx, self._bridge.rx.ready)
            ctx.set(self._bridge.rx.valid, 0)
            await ticks(ctx, self._pace)

    async def answer(self, ctx, count=1, within=2000):
        """The next ``count`` frames."""
        for _ in range(within):
            if len(self.frames) >= count:
                found, self.frames = self.frames[:count], self.frames[count:]
                return found
            await ctx.tick()
        raise AssertionError(f"no answer: {self.frames}")

    async def ask(self, ctx, kind, tag=0, words=()):
        await self.send(ctx, encode(kind, tag, words))
        return (await self.answer(ctx))[0]


def simulate(bench, core=None, errors=None):
    """``bench(ctx, host, bridge)`` at a bridge with a real register file and ``core(ctx, bridge)`` behind."""
    m = Module()
    m.submodules.bridge = bridge = Bridge(capacity=CAPACITY, timeout=TIMEOUT)
    m.submodules.registers = registers = RegisterFile()
    for name, member in SIGNALS.items():
        ours, theirs = getattr(registers, name), getattr(bridge, f"s_axil_{name}")
        m.d.comb += ours.eq(theirs) if member.flow.name == "In" else theirs.eq(ours)
    host = Host(bridge)

    async def main(ctx):
        await bench(ctx, host, bridge)

    async def watch(ctx):
        async for _, _, error in ctx.tick().sample(bridge.error):
            errors.append(error)

    async def behind(ctx):
        await core(ctx, bridge)

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(host.collect, background=True)
    if core is not None:
        simulator.add_testbench(behind, background=True)
    if errors is not None:
        simulator.add_testbench(watch, background=True)
    simulator.add_testbench(main)
    simulator.run()


async def doubling_core(ctx, bridge):
    """Takes a token, thinks, gives every element back doubled; all with stalls."""
    rng = random.Random(1)
    while True:
        token, last = [], 0
        while not last:
            await ticks(ctx, 1 + rng.randrange(3))
            ctx.set(bridge.s_axis_x_tready, 1)
            word, last = await until(
                ctx, bridge.s_axis_x_tvalid, bridge.s_axis_x_tdata, bridge.s_axis_x_tlast
            )
            ctx.set(bridge.s_axis_x_tready, 0)
            token.append(word)
        await ticks(ctx, 50)
        for i, word in enumerate(token):
            ctx.set(bridge.m_axis_y_tdata, 2 * word)
            ctx.set(bridge.m_axis_y_tlast, i == len(token) - 1)
            ctx.set(bridge.m_axis_y_tvalid, 1)
            await until(ctx, bridge.m_axis_y_tready)
            ctx.set(bridge.m_axis_y_tvalid, 0)
            await ticks(ctx, rng.randrange(3))


def test_frames_round_trip():
    frames = [Frame(Kind.READ, 7, (0x104,)), Frame(Kind.DONE, 255), Frame(0x7E, 0, tuple(range(300)))]
    data = b"".join(encode(f.kind, f.tag, f.words) for f in frames)
    for size in (1, 3, 4, 7, len(data)):
        decoder = Decoder()
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        assert [f for chunk in chunks for f in decoder.feed(chunk)] == frames
    assert encode(Kind.WRITE, 0x21, (0x40, 0x11223344)).hex() == "02210200" + "40000000" + "44332211"


@pytest.mark.parametrize("bad", [(256, 0, ()), (1, -1, ()), (1, 0, range(1 << 16))])
def test_frames_out_of_range(bad):
    with pytest.raises(ValueError, match="out of range"):
        encode(*bad)


@pytest.mark.parametrize("bad", [{"capacity": 1, "timeout": 9}, {"capacity": 9, "timeout": 1}])
def test_receiver_parameters(bad):
    with pytest.raises(ValueError, match="must be at least 2"):
        FrameReceiver(**bad)


def test_registers():
    async def bench(ctx, host, bridge):
        assert await host.ask(ctx, Kind.READ, 1, [address("ID")]) == Frame(Kind.DONE, 1, (ID_VALUE,))
        hidden = address("HIDDEN")
        assert await host.ask(ctx, Kind.WRITE, 2, [hidden, 192]) == Frame(Kind.DONE, 2)
        assert await host.ask(ctx, Kind.READ, 3, [hidden]) == Frame(Kind.DONE, 3, (192,))
        # Sent ahead, without waiting.
        await host.send(ctx, encode(Kind.WRITE, 4, [hidden, 64]) + encode(Kind.READ, 5, [hidden]))
        assert await host.answer(ctx, 2) == [Frame(Kind.DONE, 4), Frame(Kind.DONE, 5, (64,))]
        assert not ctx.get(bridge.busy)

    errors = []
    simulate(bench, errors=errors)
    assert not any(errors)


@pytest.mark.parametrize(
    ("kind", "words", "why"),
    [
        (0x7F, [], Error.UNKNOWN_KIND),
        (Kind.DONE, [1], Error.UNKNOWN_KIND),
        (Kind.READ, [], Error.WRONG_LENGTH),
        (Kind.WRITE, [0x40], Error.WRONG_LENGTH),
        (Kind.WEIGHTS, [1, 2, 3], Error.WRONG_LENGTH),
        (Kind.WEIGHTS, [], Error.WRONG_LENGTH),
        (Kind.WEIGHTS, [0] * (CAPACITY + 4), Error.WRONG_LENGTH),
        (Kind.TOKEN, [], Error.WRONG_LENGTH),
        (Kind.TOKEN, [0] * (CAPACITY + 1), Error.WRONG_LENGTH),
        (Kind.READ, [0xFFC], Error.BUS_ERROR),
        (Kind.READ, [0x1000], Error.BUS_ERROR),  # over the address width: not wrapped round to 0
        (Kind.WRITE, [0x000, 1], Error.BUS_ERROR),  # ID is read-only
    ],
)
def test_refused(kind, words, why):
    async def bench(ctx, host, bridge):
        assert await host.ask(ctx, kind, 9, words) == Frame(Kind.REFUSED, 9, (why,))
        # And it goes on.
        assert await host.ask(ctx, Kind.READ, 10, [address("ID")]) == Frame(Kind.DONE, 10, (ID_VALUE,))
        assert not ctx.get(bridge.s_axis_x_tvalid)

    errors = []
    simulate(bench, errors=errors)
    assert sum(errors) == 1


def test_weights():
    beats = []

    async def loader(ctx, bridge):
        rng = random.Random(2)
        while True:
            await ticks(ctx, 1 + rng.randrange(5))
            ctx.set(bridge.s_axis_w_tready, 1)
            beat = await until(ctx, bridge.s_axis_w_tvalid, bridge.s_axis_w_tdata, bridge.s_axis_w_tlast)
            ctx.set(bridge.s_axis_w_tready, 0)
            beats.append(tuple(beat))

    async def bench(ctx, host, bridge):
        for tag, count in enumerate((4, 8, CAPACITY)):
            words = [(tag << 24) + 0x10101 * i for i in range(count)]
            beats.clear()
            assert await host.ask(ctx, Kind.WEIGHTS, tag, words) == Frame(Kind.DONE, tag)
            want = [
                (sum(w << 32 * i for i, w in enumerate(words[at : at + 4])), at + 4 == count)
                for at in range(0, count, 4)
            ]
            assert beats == want

    simulate(bench, loader)


def test_tokens():
    async def bench(ctx, host, bridge):
        seen = []
        for tag, size in enumerate((1, 5, CAPACITY, CAPACITY)):
            token = [(tag << 16) + 3 * i for i in range(size)]
            await host.send(ctx, encode(Kind.TOKEN, tag, token))
            await ticks(ctx, CAPACITY + 10)
            assert ctx.get(bridge.busy)
            done, result = await host.answer(ctx, 2)
            assert done == Frame(Kind.DONE, tag)
            assert result == Frame(Kind.RESULT, 0, tuple(2 * word for word in token))
            seen.append(tag)
            await ticks(ctx, 2)
            assert not ctx.get(bridge.busy)
        assert len(seen) == 4

    simulate(bench, doubling_core)


def test_requests_for_pages():
    """They come unasked, once each, also while a command is answered."""

    async def core(ctx, bridge):
        for request in (0x00020005, 0x00010003, 0xFFFF0000):
            await ticks(ctx, 40)
            ctx.set(bridge.m_axis_page_tdata, request)
            ctx.set(bridge.m_axis_page_tvalid, 1)
            await until(ctx, bridge.m_axis_page_tready)
            ctx.set(bridge.m_axis_page_tvalid, 0)
        await ticks(ctx, 10_000)

    async def bench(ctx, host, bridge):
        await host.send(ctx, encode(Kind.READ, 9, [address("ID")]))
        frames = await host.answer(ctx, 4)
        pages = [f.words for f in frames if f.kind == Kind.PAGE and f.tag == 0]
        assert pages == [(0x00020005,), (0x00010003,), (0xFFFF0000,)]
        assert [f for f in frames if f.kind != Kind.PAGE] == [Frame(Kind.DONE, 9, (ID_VALUE,))]

    simulate(bench, core)


def test_registers_while_a_token_waits():
    """No core takes the token: registers still answer, another token is refused, the first one is kept."""
    token = [5, 6, 7]

    async def bench(ctx, host, bridge):
        await host.send(ctx, encode(Kind.TOKEN, 1, token))
        assert await host.ask(ctx, Kind.READ, 2, [address("ID")]) == Frame(Kind.DONE, 2, (ID_VALUE,))
        assert await host.ask(ctx, Kind.TOKEN, 3, [1]) == Frame(Kind.REFUSED, 3, (Error.BUSY,))
        assert ctx.get(bridge.busy)
        ctx.set(bridge.s_axis_x_tready, 1)
        taken = []
        while len(taken) < 3:
            taken += await until(ctx, bridge.s_axis_x_tvalid, bridge.s_axis_x_tdata)
        ctx.set(bridge.s_axis_x_tready, 0)
        assert taken == token
        assert await host.answer(ctx) == [Frame(Kind.DONE, 1)]

    simulate(bench)


def test_an_unfinished_frame_is_forgotten():
    async def bench(ctx, host, bridge):
        for sent in (1, 4, 6):  # bytes of a frame of 12
            await host.send(ctx, encode(Kind.WRITE, 1, [address("HIDDEN"), 77])[:sent])
            await ticks(ctx, TIMEOUT + 10)
            assert await host.ask(ctx, Kind.READ, 2, [address("HIDDEN")]) == Frame(Kind.DONE, 2, (0,))

    errors = []
    simulate(bench, errors=errors)
    assert sum(errors) == 3
