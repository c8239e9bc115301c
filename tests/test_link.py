# amaranth: UnusedElaboratable=no
"""The host's end of the byte link against the device's own RTL, bit errors on the line included."""

import os
import random
import socket
import threading
import tty
from collections import deque

import pytest
from link_bench import CAPACITY, DIVISOR, link_verilog

from driver.link import Link, Refused
from driver.pipes import PortPipe
from hw.host.frames import Error, Kind, encode
from hw.host.registers import ID_VALUE, address
from sim.build import build_serial
from sim.serial_line import SerialLine
from sw_model.errors import ExpertileError

pytestmark = pytest.mark.sim

MHZ = 1.0  # simulated time is a matter of taste here: a timeout is 6000 cycles
TIMEOUT = 6e-3


@pytest.fixture(scope="module")
def library():
    return build_serial(link_verilog())


def talk(link, frames, rng):
    """Random commands; every effect is checked, none may be missing or done twice. Returns frames asked."""
    asked, total, held, under_way = 0, 0, 0, deque()
    while asked < frames:
        asked += 1
        kind = rng.choice([Kind.READ, Kind.WRITE, Kind.WEIGHTS, Kind.TOKEN, Kind.TOKEN, Kind.FETCH])
        special = rng.choice([0, 0x7E7E7E7E, 0x7D5E7D5D, rng.getrandbits(32)])
        if kind == Kind.WRITE:
            held = special
            link.ask(kind, [address("LIMIT"), held])
        elif kind == Kind.READ:
            assert link.ask(kind, [address("LIMIT")]).words == (held,)
        elif kind == Kind.WEIGHTS:
            words = [rng.getrandbits(32) for _ in range(4 * rng.randrange(1, CAPACITY // 4 + 1))]
            link.ask(kind, words)
            total += sum(words[::4])
            assert link.ask(Kind.READ, [address("CYCLES")]).words == (total % (1 << 32),)
            asked += 1
        elif kind == Kind.TOKEN and len(under_way) < 3:
            token = [special] + [rng.getrandbits(32) for _ in range(rng.randrange(CAPACITY - 1))]
            link.ask(kind, [0, *token])
            under_way.append(tuple((w + 1) % (1 << 32) for w in token))
        else:
            answer = link.ask(Kind.FETCH)
            if under_way:
                while answer.kind == Kind.DONE:
                    answer = link.ask(Kind.FETCH)
                assert answer.words == under_way.popleft()
            else:
                assert answer.kind == Kind.DONE
    return asked


@pytest.mark.parametrize(
    ("noise", "frames"),
    [(0.0, 1000), (2e-4, 10_000), pytest.param(5e-4, 50_000, marks=pytest.mark.slow)],
)
def test_nothing_is_lost(noise, frames, library):
    """Bits inverted in both directions, start and stop bits too: every command is carried out, once."""
    line = SerialLine(library, divisor=DIVISOR, clock_mhz=MHZ, noise=noise, seed=11)
    link = Link(line, timeout=TIMEOUT)
    assert link.capacity == CAPACITY
    assert talk(link, frames, random.Random(12)) >= frames
    assert link.retries == 0 if noise == 0 else link.retries > 200 * frames * noise
    link.close()


def test_a_new_host_begins_anew(library):
    """One host leaves in the middle of everything; the next one gets its own results."""
    line = SerialLine(library, divisor=DIVISOR, clock_mhz=MHZ)
    first = Link(line, timeout=TIMEOUT)
    for _ in range(3):
        first.ask(Kind.TOKEN, [0, 1, 2, 3])
    line.write(encode(Kind.WRITE, 77, [address("LIMIT"), 5])[:7])
    link = Link(line, timeout=TIMEOUT)
    # The dummy core has no reset of its own; a real one's tokens are gone.
    for _ in range(3):
        link.ask(Kind.FETCH)
    assert link.ask(Kind.READ, [address("ID")]).words == (ID_VALUE,)
    assert link.ask(Kind.READ, [address("LIMIT")]).words == (0,)


def test_refusals_are_told(library):
    link = Link(SerialLine(library, divisor=DIVISOR, clock_mhz=MHZ), timeout=TIMEOUT)
    with pytest.raises(Refused, match="refused WRITE: bus error") as caught:
        link.ask(Kind.WRITE, [address("ID"), 1])
    assert caught.value.error == Error.BUS_ERROR
    with pytest.raises(Refused, match="wrong length"):
        link.ask(Kind.READ)


class Silence:
    """Nobody is there, or somebody who only babbles."""

    def __init__(self, babble=b""):
        self.time, self.written, self._babble = 0.0, [], babble

    def write(self, data):
        self.written.append(data)

    def read(self, seconds):
        self.time += 0.7 * seconds if self._babble else seconds
        return self._babble

    def now(self):
        return self.time

    def close(self):
        pass


@pytest.mark.parametrize("babble", [b"", b"login: ", encode(Kind.DONE, 200)])
def test_nobody_answers(babble):
    pipe = Silence(babble)
    with pytest.raises(ExpertileError, match=r"does not answer RESET, asked 5 times.*baud rate"):
        Link(pipe, timeout=0.3)
    assert pipe.written == [encode(Kind.RESET, 1)] * 5
    assert 9.2 < pipe.time < 9.4  # 0.3 s, then twice as long each time


def test_a_port_that_is_not_there(tmp_path):
    with pytest.raises(ExpertileError, match=r"nowhere: cannot be opened .*name a serial port"):
        PortPipe(str(tmp_path / "nowhere"))


def serve(line, read, write, stop):
    """Stand at the far end of a port, with the simulated device in hand."""
    while not stop.is_set():
        data = read()
        if data:
            line.write(data)
        answer = line.read(2e-3)
        if answer:
            write(answer)


@pytest.mark.parametrize("kind", ["terminal", "socket"])
def test_through_a_real_port(kind, library):
    """The simulated device behind a pseudo-terminal and behind a socket: the same commands, the same code."""
    stop = threading.Event()
    line = SerialLine(library, divisor=DIVISOR, clock_mhz=MHZ)
    if kind == "terminal":
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        name = os.ttyname(theirs)

        def read():
            try:
                return os.read(ours, 4096)
            except BlockingIOError:
                return b""

        def write(data):
            os.write(ours, data)
    else:
        server = socket.create_server(("127.0.0.1", 0))
        name = f"socket://127.0.0.1:{server.getsockname()[1]}"
        accepted = []

        def read():
            if not accepted:
                accepted.append(server.accept()[0])
                accepted[0].setblocking(False)
                accepted[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                return accepted[0].recv(4096)
            except BlockingIOError:
                return b""

        def write(data):
            accepted[0].sendall(data)

    thread = threading.Thread(target=serve, args=(line, read, write, stop), daemon=True)
    thread.start()
    try:
        link = Link(PortPipe(name), timeout=2.0)
        assert talk(link, 300, random.Random(3)) >= 300
    finally:
        stop.set()
        thread.join(10)
    link.close()
    if kind == "terminal":
        os.close(ours)
        os.close(theirs)
    else:
        accepted[0].close()
        server.close()
