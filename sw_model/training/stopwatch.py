"""What the parts of a run took: `pipeline.json` of the whole way."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Stopwatch"]


class Stopwatch:
    """Seconds, and seconds of processor time (child processes included), by part; the load average."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0]
        self.parts: list[dict] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is within."""
        began, used = time.monotonic(), sum(os.times()[:4])
        yield
        self.parts.append(
            {
                "name": name,
                "seconds": round(time.monotonic() - began, 1),
                "processor_seconds": round(sum(os.times()[:4]) - used, 1),
            }
        )

    def write(self, path: Path) -> None:
        """The parts so far, with the number of cores and the load average before and after."""
        load = [round(self.load, 2), round(os.getloadavg()[0], 2)]
        found = {"cores": os.cpu_count(), "load": load, "parts": self.parts}
        path.write_text(json.dumps(found, indent=1) + "\n")
