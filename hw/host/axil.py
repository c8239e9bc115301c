"""AXI4-Lite subordinate: the register file."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.energy.counters import COUNTER_BITS
from hw.host.registers import COUNTERS, COUNTERS_AT, REGISTERS, Access, present
from sw_model.config import ALL_FEATURES, Feature

__all__ = ["ADDRESS_BITS", "SIGNALS", "RegisterFile"]

ADDRESS_BITS = 12
OKAY, SLVERR = 0, 2

#: AXI4-Lite signals of a subordinate: name -> (direction, width).
SIGNALS = {
    "awaddr": In(ADDRESS_BITS),
    "awprot": In(3),
    "awvalid": In(1),
    "awready": Out(1),
    "wdata": In(32),
    "wstrb": In(4),
    "wvalid": In(1),
    "wready": Out(1),
    "bresp": Out(2),
    "bvalid": Out(1),
    "bready": In(1),
    "araddr": In(ADDRESS_BITS),
    "arprot": In(3),
    "arvalid": In(1),
    "arready": Out(1),
    "rdata": Out(32),
    "rresp": Out(2),
    "rvalid": Out(1),
    "rready": In(1),
}


class RegisterFile(wiring.Component):
    """Registers of :data:`hw.host.registers.REGISTERS` behind AXI4-Lite.

    Unmapped addresses and writes to read-only registers are answered with SLVERR; byte strobes are honoured.

    Parameters
    ----------
    reset : register name -> reset value, over that of the description (a baked image)
    features : blocks that the design has; registers of others are left out

    Members
    -------
    the AXI4-Lite signals (:data:`SIGNALS`)
    rw_NAME : value of a read-write register, without its pulse fields and those of absent blocks
    ro_NAME : value of a read-only register
    pulse_FIELD : a pulse field was written with 1 (one cycle)
    counter_addr, counter_en, counter : the counter to read, by its place in
        :data:`hw.host.registers.COUNTERS`, and its value, a cycle later

    Latency: a write is answered in the cycle after address and data are both there, a read in the next, that
    of a counter one later.
    """

    def __init__(self, reset: dict[str, int] | None = None, features: Feature = ALL_FEATURES) -> None:
        self._reset = reset or {}
        self._features = features
        self._there = present(features)
        ports = {}
        for r in self._there.values():
            if r.access is Access.RW:
                ports[f"rw_{r.name}"] = Out(r.width, init=self._reset.get(r.name, r.reset))
            elif not r.reset and r.name not in (*COUNTERS, "COUNTER_HIGH"):
                ports[f"ro_{r.name}"] = In(r.width)
            ports.update({f"pulse_{f.name}": Out(1) for f in r.fields if f.pulse and f.feature in features})
        counter = {
            "counter_addr": Out(range(len(COUNTERS))),
            "counter_en": Out(1),
            "counter": In(COUNTER_BITS),
        }
        super().__init__({**SIGNALS, **ports, **counter})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        take = Signal()
        m.d.comb += [
            take.eq(self.awvalid & self.wvalid & (~self.bvalid | self.bready)),
            self.awready.eq(take),
            self.wready.eq(take),
        ]
        mask = Signal(32)
        m.d.comb += mask.eq(Cat(strobe.replicate(8) for strobe in self.wstrb))
        with m.If(self.bready):
            m.d.sync += self.bvalid.eq(0)
        with m.If(take):
            m.d.sync += [self.bvalid.eq(1), self.bresp.eq(SLVERR)]
            with m.Switch(self.awaddr[2:]):
                for r in self._there.values():
                    if r.access is not Access.RW:
                        continue
                    with m.Case(r.offset >> 2):
                        value = self.__dict__[f"rw_{r.name}"]
                        pulses = sum(1 << f.lsb for f in r.fields if f.pulse)
                        kept = r.there(self._features) & ~pulses
                        m.d.sync += [
                            self.bresp.eq(OKAY),
                            value.eq(((value & ~mask) | (self.wdata & mask)) & kept),
                        ]
                        for f in r.fields:
                            if f.pulse and f.feature in self._features:
                                m.d.comb += self.__dict__[f"pulse_{f.name}"].eq(
                                    self.wdata[f.lsb] & mask[f.lsb]
                                )

        self._read(m)
        return m

    def _read(self, m: Module) -> None:
        high = Signal(REGISTERS["COUNTER_HIGH"].width)  # of the counter that was read last
        counting, pending = Signal(), Signal()  # a counter is asked for, and comes in this cycle
        place = self.araddr[2:] - (COUNTERS_AT >> 2)
        m.d.comb += [
            counting.eq((place >= 0) & (place < len(COUNTERS))),
            self.arready.eq(~pending & (~self.rvalid | self.rready)),
            self.counter_addr.eq(place),
            self.counter_en.eq(self.arvalid & self.arready & counting),
        ]
        m.d.sync += pending.eq(self.counter_en)
        with m.If(self.rready):
            m.d.sync += self.rvalid.eq(0)
        with m.If(pending):
            m.d.sync += [self.rvalid.eq(1), self.rresp.eq(OKAY), Cat(self.rdata, high).eq(self.counter)]
        with m.If(self.arvalid & self.arready & ~counting):
            m.d.sync += [self.rvalid.eq(1), self.rresp.eq(SLVERR), self.rdata.eq(0)]
            with m.Switch(self.araddr[2:]):
                for r in self._there.values():
                    if r.name in COUNTERS:
                        continue
                    with m.Case(r.offset >> 2):
                        if r.access is Access.RW:
                            value = self.__dict__[f"rw_{r.name}"]
                        elif r.reset:
                            value = r.reset
                        elif r.name == "COUNTER_HIGH":
                            value = high
                        else:
                            value = self.__dict__[f"ro_{r.name}"]
                        m.d.sync += [self.rresp.eq(OKAY), self.rdata.eq(value)]
