"""IP-XACT (IEEE 1685-2009) description of the accelerator: a block for Vivado's IP catalogue and its like."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as Xml

from amaranth.lib.wiring import In

from hw.host.register_files import SPAN, version
from hw.host.registers import REGISTERS, Access
from hw.top import ports
from hw.verilog import MODULE
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError

__all__ = ["INTERFACES", "component"]

SPIRIT = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
XILINX = "http://www.xilinx.com"
VENDOR, LIBRARY = "expertile", "accelerators"

#: Bus interfaces by the prefix of their ports: (side, bus type, what it is for).
INTERFACES: dict[str, tuple[str, str, str]] = {
    "s_axil": ("slave", "aximm", "Registers, AXI4-Lite."),
    "s_axis_x": ("slave", "axis", "Tokens, a binary32 element a beat."),
    "s_axis_w": ("slave", "axis", "Weight packets."),
    "m_axis_y": ("master", "axis", "Results, in the order of the tokens."),
    "m_axis_page": ("master", "axis", "Requests for pages."),
}

CLOCKS, RESET, LEVEL = ("aclk", "array_clk"), "aresetn", "sparse_attention"
MEMORY_MAP = "registers"
#: Device families of the catalogue that have block RAM and multipliers as the Verilog's text wants them.
FAMILIES = ("artix7", "kintex7", "virtex7", "zynq", "kintexu", "kintexuplus", "virtexuplus", "zynquplus")


def _tag(name: str) -> str:
    return f"{{{SPIRIT}}}{name}"


def _add(parent: Xml.Element, name: str, text: object = None) -> Xml.Element:
    node = Xml.SubElement(parent, _tag(name))
    if text is not None:
        node.text = str(text)
    return node


def _all(parent: Xml.Element, texts: Mapping[str, object]) -> None:
    for name, text in texts.items():
        _add(parent, name, text)


def _name_it(parent: Xml.Element, name: str, vendor: str, library: str, version: str) -> None:
    place = {"vendor": vendor, "library": library, "name": name, "version": version}
    if parent.tag == _tag("component"):
        _all(parent, place)
    else:
        for key, value in place.items():
            parent.set(_tag(key), value)


def component(config: HardwareConfig, verilog_file: str) -> str:
    """The component of a configuration, to stand beside its Verilog under the name component.xml.

    Bus interfaces with the AXI specifications' signals, clocks with the interfaces and the reset that belong
    to them, the registers as memory map, and the ports. Bus types are named as Vivado's catalogue has them.

    Parameters
    ----------
    verilog_file : where the text of :func:`hw.verilog.generate` is, from the component's folder

    Raises
    ------
    ExpertileError : a design without AXI ports
    """
    if config.body == "micro":
        raise ExpertileError(f"config {config.name!r}: a design of body 'micro' has no AXI ports to describe")
    Xml.register_namespace("spirit", SPIRIT)
    Xml.register_namespace("xilinx", XILINX)
    root = Xml.Element(_tag("component"))
    _name_it(root, MODULE, VENDOR, LIBRARY, version())
    all_ports = ports(config)
    buses = _add(root, "busInterfaces")
    for prefix, (side, bus, doc) in INTERFACES.items():
        signals = {
            name.removeprefix(f"{prefix}_").upper(): name
            for name in all_ports
            if name.startswith(f"{prefix}_")
        }
        node = _bus(buses, prefix, doc, ("interface", bus), side, signals)
        if bus == "aximm":
            _add(node.find(_tag(side)), "memoryMapRef").set(_tag("memoryMapRef"), MEMORY_MAP)
            _parameters(node, prefix, {"PROTOCOL": "AXI4LITE"})
    _bus(
        buses, RESET, "Reset, active low, synchronous to aclk.", ("signal", "reset"), "slave", {"RST": RESET}
    )
    _parameters(buses[-1], RESET, {"POLARITY": "ACTIVE_LOW"})
    for clock in CLOCKS:
        if clock in all_ports:
            _bus(buses, clock, "Clock.", ("signal", "clock"), "slave", {"CLK": clock})
        if clock == CLOCKS[0]:
            partners = {"ASSOCIATED_BUSIF": ":".join(INTERFACES), "ASSOCIATED_RESET": RESET}
            _parameters(buses[-1], clock, partners)
    doc = "Level of sparse attention that the energy governor asks for."
    _bus(buses, LEVEL, doc, ("signal", "data"), "master", {"DATA": LEVEL})
    _memory_map(_add(root, "memoryMaps"))
    _model(_add(root, "model"), config)
    sources = _add(_add(root, "fileSets"), "fileSet")
    _add(sources, "name", "verilog")
    _all(_add(sources, "file"), {"name": verilog_file, "fileType": "verilogSource"})
    _add(root, "description", f"Mixture-of-Experts layer, configuration {config.name} ({config.hash}).")
    _parameters(root, MODULE, {"Component_Name": MODULE}, resolve="user")
    _catalogue(_add(root, "vendorExtensions"), config)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _bus(
    buses: Xml.Element, name: str, doc: str, kind: tuple[str, str], side: str, signals: Mapping[str, str]
) -> Xml.Element:
    """A bus interface; ``signals``: name on the bus -> port."""
    node = _add(buses, "busInterface")
    _all(node, {"name": name, "description": doc})
    library, bus = kind
    _name_it(_add(node, "busType"), bus, "xilinx.com", library, "1.0")
    _name_it(_add(node, "abstractionType"), f"{bus}_rtl", "xilinx.com", library, "1.0")
    _add(node, side)
    maps = _add(node, "portMaps")
    for logical, port in signals.items():
        pair = _add(maps, "portMap")
        _add(_add(pair, "logicalPort"), "name", logical)
        _add(_add(pair, "physicalPort"), "name", port)
    return node


def _parameters(node: Xml.Element, owner: str, values: Mapping[str, str], resolve: str = "immediate") -> None:
    group = _add(node, "parameters")
    for name, value in values.items():
        parameter = _add(group, "parameter")
        _add(parameter, "name", name)
        text = _add(parameter, "value", value)
        kind = "PARAM_VALUE" if resolve == "user" else f"BUSIFPARAM_VALUE.{owner.upper()}"
        text.set(_tag("id"), f"{kind}.{name}")
        text.set(_tag("resolve"), resolve)


def _memory_map(maps: Xml.Element) -> None:
    map = _add(maps, "memoryMap")
    _add(map, "name", MEMORY_MAP)
    block = _add(map, "addressBlock")
    _all(block, {"name": "block", "baseAddress": 0, "range": SPAN, "width": 32, "usage": "register"})
    for r in REGISTERS.values():
        access = "read-write" if r.access is Access.RW else "read-only"
        node = _add(block, "register")
        _all(node, {"name": r.name, "description": r.doc, "addressOffset": f"0x{r.offset:03X}", "size": 32})
        _all(node, {"volatile": str(r.access is Access.RO).lower(), "access": access})
        _all(_add(node, "reset"), {"value": f"0x{r.reset:X}", "mask": f"0x{(1 << r.width) - 1:X}"})
        for f in r.fields:
            field = _add(node, "field")
            _all(field, {"name": f.name, "description": f.doc, "bitOffset": f.lsb, "bitWidth": f.width})
            _add(field, "access", "write-only" if f.pulse else access)
    _add(map, "addressUnitBits", 8)


def _model(model: Xml.Element, config: HardwareConfig) -> None:
    views = _add(model, "views")
    for use in ("synthesis", "simulation"):
        view = _add(views, "view")
        _all(
            view, {"name": f"xilinx_verilog{use}", "envIdentifier": f"verilogSource:vivado.xilinx.com:{use}"}
        )
        _all(view, {"language": "verilog", "modelName": MODULE})
        _add(_add(view, "fileSetRef"), "localName", "verilog")
    nodes = _add(model, "ports")
    for name, member in ports(config).items():
        port = _add(nodes, "port")
        _add(port, "name", name)
        wire = _add(port, "wire")
        _add(wire, "direction", "in" if member.flow is In else "out")
        if member.shape > 1:
            _all(_add(wire, "vector"), {"left": member.shape - 1, "right": 0})


def _catalogue(extensions: Xml.Element, config: HardwareConfig) -> None:
    """What Vivado's catalogue lists it by."""

    def add(parent: Xml.Element, name: str, text: str | None = None) -> Xml.Element:
        node = Xml.SubElement(parent, f"{{{XILINX}}}{name}")
        node.text = text
        return node

    core = add(extensions, "coreExtensions")
    families = add(core, "supportedFamilies")
    for family in FAMILIES:
        add(families, "family", family).set(f"{{{XILINX}}}lifeCycle", "Production")
    add(add(core, "taxonomies"), "taxonomy", "/UserIP")
    add(core, "displayName", f"Expertile {config.name}")
    add(core, "coreRevision", "1")
