"""Verilog of a configuration, and the description that goes with it. The same bytes on every machine."""

from __future__ import annotations

import os
import re
from dataclasses import asdict

from amaranth.back import verilog
from amaranth.lib.wiring import In

from hw.host.registers import present
from hw.micro import core as micro
from hw.micro.core import Core
from hw.sharing import Sharing
from hw.top import Top
from hw.top import ports as axi_ports
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image

__all__ = ["MODULE", "array_clock", "contents_apart", "describe", "generate", "name_elements"]

MODULE = "expertile_top"
_RATIO = "array_clk / aclk"
_ESCAPED = re.compile(r"\\\S+")
_MEMORY = re.compile(r"^  initial begin\n((?:    \S+ ?\[\d+\] = \d+'[hd][0-9a-f]+;\n)+)  end\n", re.MULTILINE)
_WORD = re.compile(r"    (?P<memory>\S+) ?\[(?P<index>\d+)\] = \d+'(?P<base>[hd])(?P<value>[0-9a-f]+);\n")
_BASES = {"h": 16, "d": 10}
_ZERO_MEMORY = re.compile(r"^  initial begin\n(?:    \S+ ?\[\d+\] = \d+'[hd]0+;\n)+  end\n", re.MULTILINE)


def ports(config: HardwareConfig) -> dict:
    """Ports of the module: AXI, or with body "micro" bytes of the link."""
    return micro.PORTS if config.body == "micro" else axi_ports(config)


def generate(config: HardwareConfig, image: Image | None = None) -> str:
    """Verilog text of the whole accelerator, module :data:`MODULE`; ``image`` bakes weights in.

    Raises
    ------
    ExpertileError : the design cannot hold weights in its text, or its maxima are too large
    """
    if image is not None and config.body == "micro":
        raise ExpertileError(
            f"config {config.name!r}: memories of body 'micro' wake up empty; send the weights, or use a "
            "configuration with another body"
        )
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"  # one Yosys, whatever the machine has
    top = Core(config) if config.body == "micro" else Top(config, image)
    members = [getattr(top, name) for name in ports(config)]
    platform = Sharing()
    text = verilog.convert(
        top, name=MODULE, platform=platform, ports=members, emit_src=False, strip_internal_attrs=True
    )
    text = name_elements("\n".join([text, *platform.modules.values()]))
    # Memories are not cleared at the start, as in silicon (tables keep their contents): nothing leans on it,
    # and the text is a fraction of the size.
    text = _ZERO_MEMORY.sub("", text)
    if config.array_clock > 1:
        text = f"// {_RATIO} = {config.array_clock}\n{text}"
    return text


def name_elements(text: str) -> str:
    """Verilog of Amaranth's with elements of arrays named ``a.1`` in place of ``a[1]``.

    Yosys takes the latter for bit 1 of ``a`` once ABC9, which knows wires by name, has mapped both: it fails,
    or merges two wires into one.
    """
    return _ESCAPED.sub(lambda name: name[0].replace("[", ".").replace("]", ""), text)


def contents_apart(text: str) -> tuple[str, dict[str, str]]:
    """Verilog of :func:`generate` that reads its memories with ``$readmemh``, and the files for it, by name.

    Yosys makes a cell of every word that the text itself assigns, and takes minutes over those of an image.
    """
    files: dict[str, str] = {}

    def apart(found: re.Match[str]) -> str:
        words = [*_WORD.finditer(found[1])]
        name = f"{MODULE}.{len(files)}.hex"
        files[name] = "".join(
            f"@{int(word['index']):x} {int(word['value'], _BASES[word['base']]):x}\n" for word in words
        )
        return f'  initial $readmemh("{name}", {words[0]["memory"]} );\n'

    return _MEMORY.sub(apart, text), files


def array_clock(text: str) -> int:
    """How many times the core's clock the array's is meant to be, of a Verilog text of :func:`generate`."""
    found = re.match(rf"// {_RATIO} = (\d+)\n", text)
    return int(found[1]) if found else 1


def describe(config: HardwareConfig) -> dict:
    """Ports, parameters, derived widths and registers, for a JSON beside the Verilog."""
    return {
        "module": MODULE,
        "config": asdict(config),
        "config_hash": config.hash,
        "macs_per_cycle": config.macs_per_cycle,
        "derived": {
            "acc_bits": config.acc_bits,
            "combine_bits": config.combine_bits,
            "shift_max": config.shift_max,
        },
        "ports": [
            {
                "name": name,
                "direction": "input" if member.flow is In else "output",
                "width": member.shape,
            }
            for name, member in ports(config).items()
        ],
        "registers": [
            {
                "name": r.name,
                "offset": r.offset,
                "access": r.access.value,
                "width": r.width,
                "reset": r.reset,
                "doc": r.doc,
                "fields": [asdict(f) for f in r.fields],
            }
            for r in present(config.features).values()
        ],
    }
