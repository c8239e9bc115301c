"""The harness itself, on a small core with known faults: what it passes on, and what it must notice."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sim import build, runner, tools
from sim.memory import PageMemory
from sim.verilator import Core
from sw_model.errors import ExpertileError

pytestmark = pytest.mark.sim

VERILOG = Path(__file__).with_name("faulty_core.v").read_text()
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def library() -> Path:
    return build.build_verilator(VERILOG)


@pytest.fixture
def core(library: Path) -> Iterator[Core]:
    with Core(library, stalls=0.5, seed=3, watchdog=500) as core:
        yield core


def test_tokens_and_weights_pass_with_any_stalls(library: Path) -> None:
    packets = [np.array([[1, 0, 0, 2], [3, 0, 0, 4]]), np.array([[5, 0, 0, 6]])]
    for stalls in (0.0, 0.3, 0.95):
        with Core(library, stalls=stalls, seed=1) as core:
            core.send_weights(packets)
            core.finish()
            assert core.read(4) == (21 + len(packets), 0)
            assert np.array_equal(core.run(X), X)
            assert np.array_equal(core.run(X[:1]), X[:1])


def test_seeds_repeat_and_differ(library: Path) -> None:
    def cycles(seed: int) -> tuple[int, int]:
        with Core(library, stalls=0.5, seed=seed) as core:
            core.run(X)
            return core.cycle, core.read(8)[0]

    assert cycles(1) == cycles(1)
    (quick, unset), (_, other) = cycles(1), cycles(2)
    assert quick > X.size
    assert unset != other  # what no reset sets starts at random


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (1, r"no handshake on any port for 500 cycles \(streams.*_x took 3 of 8 .*_y gave 3 of 8"),
        (2, r"tlast came early or late"),
        (3, r"changed a beat before it was taken"),
        (4, r"changed a beat before it was taken"),
    ],
)
def test_faults_are_named(core: Core, fault: int, message: str) -> None:
    assert core.write(0, fault) == 0
    with pytest.raises(RuntimeError, match=message):
        core.run(X)
    core.reset()
    assert np.array_equal(core.run(X), X)


PAGES = [[np.full((3, 4), 7)], [np.full((2, 4), 10), np.full((5, 4), 20)]]


@pytest.mark.parametrize(("latency", "bandwidth"), [(0, 1.0), (0, 0.3), (400, 1.0)])
def test_pages_are_answered(library: Path, latency: int, bandwidth: float) -> None:
    """Once a request, late and slowly as asked for; weights that are sent meanwhile do not mix with them."""
    whole = 2 * (2 * 10 + 5 * 20) + 2  # what page 1 adds to the core's sum, tlast included
    memory = PageMemory(latency=latency, bandwidth=bandwidth)
    with Core(library, watchdog=100, memory=memory) as core:
        core.serve_pages(PAGES)
        core.run(X[:1])
        begin = core.cycle
        core.send_weights([np.array([[1, 0, 0, 2]])])
        core.finish()
        while core.read(4)[0] < whole + 4:
            assert core.cycle < begin + latency + 100
        assert core.cycle - begin >= latency + 6 / bandwidth - X.shape[1]
        core.wait(100)
        assert core.read(4)[0] == whole + 4
        assert core.page_requests() == [(1, 2)]
        assert core.page_requests(1) == []


@pytest.mark.parametrize(("fault", "message"), [(7, "a page that there is not"), (8, "m_axis_page changed")])
def test_bad_requests_are_named(library: Path, fault: int, message: str) -> None:
    with Core(library, stalls=0.9, seed=1) as core:
        core.serve_pages(PAGES)
        core.write(0, fault)
        with pytest.raises(RuntimeError, match=message):
            core.run(X)


def test_a_beat_too_many_is_named(core: Core) -> None:
    core.write(0, 5)
    core.run(X)
    core.wait(10)
    with pytest.raises(RuntimeError, match="a beat that belongs to no token"):
        core.run(X)


def test_an_unanswered_read_is_named(core: Core) -> None:
    core.write(0, 6)
    with pytest.raises(RuntimeError, match=r"no handshake .*read of 0x0"):
        core.read(0)


def test_misuse(library: Path) -> None:
    with pytest.raises(ValueError, match="probability"):
        Core(library, stalls=1.0)
    core = Core(library)
    with pytest.raises(ValueError, match="bandwidth"):
        PageMemory(bandwidth=0)
    with pytest.raises(ValueError, match="lengths"):
        core.start(X.view(np.uint32), np.array([3]), 2, 4)
    core.close()
    core.close()
    with pytest.raises(ValueError, match="closed"):
        core.read(0)


def test_builders_at_once_share_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILD", tmp_path)
    gate, results, works = threading.Barrier(2), [], []

    def work(folder: Path) -> None:
        works.append(folder)
        time.sleep(0.2)  # the other one has come by now
        (folder / "out").write_text("same")

    def builder() -> None:
        gate.wait(10)
        results.append(build.cached("thing", "out", "building", work))

    threads = [threading.Thread(target=builder) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "thing" / "out"] * 2 and len(works) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"thing", ".locks"}


def test_a_failed_build_leaves_its_log_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILD", tmp_path)
    monkeypatch.setattr(build, "_runtime", lambda env: tmp_path)
    with pytest.raises(RuntimeError, match="verilator_bin failed"):
        build.build_verilator("module expertile_top(input a; endmodule")
    left = {p.name for p in tmp_path.iterdir()} - {".locks"}
    assert len(left) == 1 and left.pop().endswith("-failed.log")


def test_a_testbench_that_never_ran_is_no_success(tmp_path: Path) -> None:
    folder = runner.build("icarus", VERILOG)
    with pytest.raises(RuntimeError, match=r"icarus: no_such_module: no test ran to its end(?s:.*)No module"):
        runner.run("icarus", folder, "no_such_module", work=tmp_path, env={})


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    with pytest.raises(ExpertileError, match=r"vvp is not installed; .*iverilog"):
        tools.icarus()
    tools.verilator.cache_clear()
    with pytest.raises(ExpertileError, match=r"g\+\+ is not installed"):
        tools.verilator()
