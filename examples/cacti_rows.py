"""The CACTI rows of the energy table, worked out anew and compared with sw_model/energy/table.json.

    python examples/cacti_rows.py --cacti FOLDER    # HewlettPackard/cacti, or a copy of it, built with make

Prints pJ an access as CACTI gives it and as the table has it; the last line says whether all agree.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from sw_model.energy.table import rows

CHANGES = {
    "associativity": "1",
    "read-write port": "1",
    "exclusive read port": "0",
    "exclusive write port": "0",
    "UCA bank count": "1",
    "operating temperature (K)": "320",
    "cache type": '"ram"',
    "Add ECC -": '"false"',
    **{f"{a} array {part} type -": '"itrs-lop"' for a in ("Data", "Tag") for part in ("cell", "peripheral")},
}
UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20}


def run(folder: Path, size: int, bits: int, node: int) -> dict[str, float]:
    """pJ of a read and of a write of ``bits`` bits."""
    changes = CHANGES | {
        "size (bytes)": str(size),
        "block size (bytes)": str(bits // 8),
        "output/input bus width": str(bits),
        "technology (u)": f"{node / 1000:.3f}",
    }
    sample = (folder / "sample_config_files" / "ddr3_cache.cfg").read_text().splitlines()
    kept = [line for line in sample if not line.startswith(tuple(f"-{key}" for key in changes))]
    text = "\n".join([*kept, *(f"-{key} {value}" for key, value in changes.items()), ""])
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(text)
        file.flush()
        command = [folder.resolve() / "cacti", "-infile", file.name]
        # It may crash when it frees its memory, after all is printed: only what it printed counts.
        out = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    found = {}
    for action in ("read", "write"):
        match = re.search(rf"Total dynamic {action} energy per access \(nJ\): ([\d.e+-]+)", out)
        if match is None:
            raise SystemExit(f"CACTI gave no {action} energy for {size} bytes: {out[-300:]}")
        found[action] = 1000 * float(match[1])
    return found


def main() -> None:
    """Compare every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cacti", type=Path, required=True, help="folder with the built program")
    folder = parser.parse_args().cacti
    same = True
    for row in rows().values():
        match = re.fullmatch(r"c(\d+)_(\d+)(B|KB|MB)_(\d+)b_(read|write)", row.id)
        if match is None:
            continue
        node, size, unit, bits, action = match.groups()
        pj = run(folder, int(size) * UNITS[unit], int(bits), int(node))[action]
        close = abs(pj / row.pJ - 1) < 1e-3
        same &= close
        note = "" if close else "  DIFFERENT"
        print(f"{row.id}: CACTI {pj:.4g} pJ, table {row.pJ:.4g} pJ{note}", flush=True)
    print("all agree" if same else "NOT all agree")


if __name__ == "__main__":
    main()
