"""The accelerator as a LiteX core: its AXI ports as LiteX interfaces around an instance of the Verilog.

Needs LiteX (the extra of that name); nothing else of the project imports this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litex.gen import LiteXModule
from litex.soc.interconnect import axi, stream
from migen import ClockSignal, Instance, ResetSignal

from hw import verilog
from hw.host.axil import ADDRESS_BITS, SIGNALS
from hw.top import ports as members_of
from sw_model.config import HardwareConfig

__all__ = ["Expertile"]


class Expertile(LiteXModule):
    """One MoE layer.

    Parameters
    ----------
    platform : gets the Verilog as a source
    config : of the accelerator; its array must run at the core's clock
    folder : where the Verilog is written, expertile_top.v

    Attributes
    ----------
    bus : AXI4-Lite registers; add it to a SoC's bus as a slave of :attr:`SPAN` bytes
    x, w : stream endpoints in: tokens (data, user; last at a token's end) and weights (data)
    y, page : stream endpoints out: results and requests for pages (data)
    """

    SPAN = 1 << ADDRESS_BITS

    def __init__(self, platform: Any, config: HardwareConfig, folder: Path) -> None:
        if config.array_clock > 1:
            raise ValueError(f"array_clock must be 1 here, not {config.array_clock}")
        source = Path(folder) / f"{verilog.MODULE}.v"
        source.write_text(verilog.generate(config))
        platform.add_source(str(source))

        self.bus = bus = axi.AXILiteInterface(data_width=32, address_width=32)
        width = {name: member.shape for name, member in members_of(config).items()}
        user = ("user", width["s_axis_x_tuser"])
        self.x = stream.Endpoint([("data", width["s_axis_x_tdata"]), user])
        self.w = stream.Endpoint([("data", width["s_axis_w_tdata"])])
        self.y = stream.Endpoint([("data", width["m_axis_y_tdata"])])
        self.page = stream.Endpoint([("data", width["m_axis_page_tdata"])])

        ports: dict[str, Any] = {"i_aclk": ClockSignal(), "i_aresetn": ~ResetSignal()}
        for name, member in SIGNALS.items():
            channel, part = (name[0], name[1:]) if name[0] in "wrb" else (name[:2], name[2:])
            inner = getattr(getattr(bus, channel), part, 0)
            side = "i" if member.flow.name == "In" else "o"
            ports[f"{side}_s_axil_{name}"] = inner[:ADDRESS_BITS] if part == "addr" else inner
        for prefix, end in (("s_axis_x", self.x), ("s_axis_w", self.w), ("m_axis_y", self.y)):
            ports |= self._axis(prefix, end)
        ports |= self._axis("m_axis_page", self.page)
        ports["i_s_axis_x_tuser"] = self.x.user
        self.specials += Instance(verilog.MODULE, **ports)

    @staticmethod
    def _axis(prefix: str, end: stream.Endpoint) -> dict[str, Any]:
        forth, back = ("i", "o") if prefix.startswith("s_") else ("o", "i")
        return {
            f"{forth}_{prefix}_tdata": end.data,
            f"{forth}_{prefix}_tvalid": end.valid,
            f"{forth}_{prefix}_tlast": end.last,
            f"{back}_{prefix}_tready": end.ready,
        }
