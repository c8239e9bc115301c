"""The register map for others: C header, CMSIS-SVD and Markdown, all from :mod:`hw.host.registers`."""

from __future__ import annotations

import sys
from textwrap import wrap
from xml.etree import ElementTree as Xml

from hw.host.axil import ADDRESS_BITS
from hw.host.registers import ID_VALUE, REGISTERS, VERSION_VALUE, Access, Field, Register

__all__ = ["c_header", "markdown", "svd", "version"]

NAME = "EXPERTILE"
SVD_SCHEMA = "1.3"
SPAN = 1 << ADDRESS_BITS  # bytes that the AXI4-Lite port decodes


def version() -> str:
    """Version of the register map, as people write it."""
    return ".".join(str(VERSION_VALUE >> shift & 0xFF) for shift in (16, 8, 0))


def _mask(field: Field) -> int:
    return ((1 << field.width) - 1) << field.lsb


def _access(register: Register) -> str:
    return "read and write" if register.access is Access.RW else "read only"


def c_header() -> str:
    """C99: offset, width mask and reset value of every register; shift and mask of every field."""
    lines = [
        f"/* Registers of the Expertile accelerator, map version {version()}. Generated: do not edit. */",
        f"#ifndef {NAME}_REGISTERS_H",
        f"#define {NAME}_REGISTERS_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define {NAME}_ID_VALUE UINT32_C(0x{ID_VALUE:08X})",
        f"#define {NAME}_VERSION_VALUE UINT32_C(0x{VERSION_VALUE:08X})",
        f"#define {NAME}_SPAN UINT32_C(0x{SPAN:X})",
    ]
    for r in REGISTERS.values():
        name = f"{NAME}_{r.name}"
        lines += ["", *_comment(f"{r.doc} ({_access(r)})"), f"#define {name} UINT32_C(0x{r.offset:03X})"]
        lines.append(f"#define {name}_BITS UINT32_C(0x{(1 << r.width) - 1:08X})")
        lines.append(f"#define {name}_RESET UINT32_C(0x{r.reset:08X})")
        for f in r.fields:
            field = f"{name}_{f.name.upper()}"
            lines += [*_comment(f.doc), f"#define {field}_SHIFT {f.lsb}"]
            lines.append(f"#define {field}_MASK UINT32_C(0x{_mask(f):08X})")
    return "\n".join([*lines, "", "#endif", ""])


def _comment(text: str) -> list[str]:
    first, *rest = wrap(text, 104)
    lines = [f"/* {first}", *(f" * {line}" for line in rest)]
    return [*lines[:-1], lines[-1] + " */"]


def svd() -> str:
    """CMSIS-SVD of one accelerator at address 0; the system's own description moves it to its place."""
    device = Xml.Element("device", schemaVersion=SVD_SCHEMA)

    def add(parent: Xml.Element, **texts: object) -> None:
        for name, text in texts.items():
            Xml.SubElement(parent, name).text = str(text)

    add(device, name="Expertile", version=version(), description="Mixture-of-Experts accelerator.")
    add(device, addressUnitBits=8, width=32)
    add(device, size=32, access="read-write", resetValue="0x00000000", resetMask="0xFFFFFFFF")
    peripheral = Xml.SubElement(Xml.SubElement(device, "peripherals"), "peripheral")
    add(peripheral, name=NAME, description="One MoE layer behind AXI4-Lite.", baseAddress="0x00000000")
    add(Xml.SubElement(peripheral, "addressBlock"), offset="0x0", size=f"0x{SPAN:X}", usage="registers")
    registers = Xml.SubElement(peripheral, "registers")
    for r in REGISTERS.values():
        node = Xml.SubElement(registers, "register")
        access = "read-write" if r.access is Access.RW else "read-only"
        add(node, name=r.name, description=r.doc, addressOffset=f"0x{r.offset:03X}", size=32, access=access)
        add(node, resetValue=f"0x{r.reset:08X}", resetMask=f"0x{(1 << r.width) - 1:08X}")
        fields = Xml.SubElement(node, "fields")
        for f in r.fields or (Field("value", 0, r.width, r.doc),):
            field = Xml.SubElement(fields, "field")
            add(field, name=f.name.upper(), description=f.doc, bitOffset=f.lsb, bitWidth=f.width)
            add(field, access="write-only" if f.pulse else access)
    Xml.indent(device)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(device, encoding="unicode") + "\n"


def markdown() -> str:
    """The map as a page of the documentation."""
    lines = [
        "# Registers",
        "",
        "<!-- Written by `make registers` from hw/host/registers.py. -->",
        "",
        f"Map version {version()}. Registers are 32 bits wide, at byte offsets from the AXI4-Lite port's",
        "base. `expertile verilog` writes the same map as a C header (`.h`), as CMSIS-SVD (`.svd`) and, with",
        "ports and parameters, as JSON.",
        "",
        "- Other addresses, and writes to a read-only register, are answered with SLVERR and change nothing.",
        "- A byte is written where its WSTRB bit is set. Bits over a register's width read as 0.",
        "- Fields marked *pulse* act for one cycle when written with 1, and read as 0.",
        "",
        "| Offset | Name | Bits | Access | Reset | |",
        "|---|---|---|---|---|---|",
    ]
    for r in REGISTERS.values():
        lines.append(
            f"| 0x{r.offset:03X} | {r.name} | {r.width} | {r.access.value} | 0x{r.reset:X} | {r.doc} |"
        )
    for r in REGISTERS.values():
        if r.fields:
            lines += ["", f"## Fields of {r.name}", "", "| Bits | Field | |", "|---|---|---|"]
            for f in r.fields:
                high = f.lsb + f.width - 1
                bits = str(f.lsb) if f.width == 1 else f"{high}:{f.lsb}"
                lines.append(f"| {bits} | {f.name}{' *(pulse)*' if f.pulse else ''} | {f.doc} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
