"""The register map in other languages says what the description says, by the word of outside tools."""

import shutil
import subprocess
from importlib import resources
from io import BytesIO
from pathlib import Path

import pytest
from cmsis_svd.parser import SVDParser
from lxml import etree

from hw.host.register_files import c_header, markdown, svd, version
from hw.host.registers import ID_VALUE, REGISTERS, VERSION_VALUE, Access

ROOT = Path(__file__).parent.parent


def expected() -> dict[str, int]:
    """Macros of the header and their values."""
    macros = {"EXPERTILE_ID_VALUE": ID_VALUE, "EXPERTILE_VERSION_VALUE": VERSION_VALUE}
    for r in REGISTERS.values():
        name = f"EXPERTILE_{r.name}"
        macros |= {name: r.offset, f"{name}_BITS": 2**r.width - 1, f"{name}_RESET": r.reset}
        for f in r.fields:
            macros[f"{name}_{f.name.upper()}_SHIFT"] = f.lsb
            macros[f"{name}_{f.name.upper()}_MASK"] = sum(1 << f.lsb + i for i in range(f.width))
    return macros


def compiles(source: str, *options: str) -> bool:
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", *options, "-x", "c", "-"]
    return not subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_c_header(tmp_path):
    header = tmp_path / "expertile.h"
    header.write_text(c_header())
    include = f'#include "{header}"\n'
    assert compiles(2 * include + "int main(void) { return 0; }\n", "-std=c99")
    checks = [f'_Static_assert({n} == {v}u, "{n}");' for n, v in expected().items()]
    assert compiles(include + "\n".join(checks) + "\n", "-std=c11")
    assert not compiles(include + checks[-1].replace("==", "!=") + "\n", "-std=c11")
    defined = {line.split()[1] for line in c_header().splitlines() if line.startswith("#define")}
    assert defined == expected().keys() | {"EXPERTILE_REGISTERS_H", "EXPERTILE_SPAN"}


def test_svd_follows_the_schema():
    file = resources.files("cmsis_svd") / "schemas" / "CMSIS-SVD_1_3_9.xsd"
    schema = etree.XMLSchema(etree.fromstring(file.read_bytes()))
    tree = etree.fromstring(svd().encode())
    schema.assertValid(tree)
    tree.find(".//addressOffset").text = "nowhere"
    assert not schema.validate(tree)


def test_svd_as_another_reader_has_it():
    device = SVDParser.for_xml_file(BytesIO(svd().encode())).get_device()
    (peripheral,) = device.get_peripherals()
    found = {r.name: r for r in peripheral.get_registers()}
    assert list(found) == list(REGISTERS)
    assert device.version == version()
    for r in REGISTERS.values():
        there = found[r.name]
        writable = r.access is Access.RW
        assert (there.address_offset, there.reset_value, there.size) == (r.offset, r.reset, 32), r.name
        assert there.access.value == ("read-write" if writable else "read-only")
        assert there.description == r.doc
        fields = [(f.name, f.bit_offset, f.bit_width) for f in there.get_fields()]
        assert fields == [(f.name.upper(), f.lsb, f.width) for f in r.fields] or [("VALUE", 0, r.width)]


def test_the_page_is_current():
    """`make registers` writes it."""
    assert (ROOT / "docs" / "registers.md").read_text() == markdown()


def test_the_page_has_every_register():
    text = markdown()
    for r in REGISTERS.values():
        assert f"| 0x{r.offset:03X} | {r.name} |" in text
        assert all(f"{f.name}" in text for f in r.fields)
