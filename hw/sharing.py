"""Components that are alike, as instances of one Verilog module: Amaranth writes each out on its own."""

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, ClockSignal, Fragment, Instance, ResetSignal, Value
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["Sharing", "shared"]


class Sharing:
    """Platform under which :func:`shared` components become instances.

    Attributes
    ----------
    modules : Verilog by module name, of all that was shared
    """

    def __init__(self) -> None:
        self.modules: dict[str, str] = {}

    def instance(self, name: str, component: wiring.Component, domains: tuple[str, ...]) -> Instance:
        """``component`` as an instance of module ``name``, in the domain "sync" and further ``domains``."""
        if name not in self.modules:
            self.modules[name] = self._verilog(name, component, domains)
        component._MustUse__used = True  # as far as Amaranth's warning goes: its module stands for it
        ports = {
            f"{'i' if member.flow is In else 'o'}_{'__'.join(map(str, path))}": Value.cast(value)
            for path, member, value in component.signature.flatten(component)
        }
        for domain in domains:
            ports |= {f"i_{domain}_clk": ClockSignal(domain), f"i_{domain}_rst": ResetSignal(domain)}
        return Instance(name, i_clk=ClockSignal(), i_rst=ResetSignal(), **ports)

    def _verilog(self, name: str, component: wiring.Component, domains: tuple[str, ...]) -> str:
        """Clocks are named here: Amaranth would put them in the order of a set, another one in every run."""
        clocks = [ClockDomain(domain) for domain in ("sync", *domains)]
        ports = {
            "__".join(map(str, path)): (
                Value.cast(value),
                PortDirection.Input if member.flow is In else PortDirection.Output,
            )
            for path, member, value in component.signature.flatten(component)
        }
        for clock in clocks:
            ports |= {s.name: (s, PortDirection.Input) for s in (clock.clk, clock.rst)}
        fragment = Fragment.get(component, self)
        fragment.add_domains(clocks)
        return verilog.convert(fragment, name=name, ports=ports, emit_src=False, strip_internal_attrs=True)


def shared(
    component: wiring.Component, name: str, platform: object, domains: tuple[str, ...] = ()
) -> wiring.Component | Instance:
    """``component``, or under :class:`Sharing` an instance of module ``name``.

    All components of a name must be alike, parameters and initial contents included, and use the domain
    "sync" and ``domains``.
    """
    return platform.instance(name, component, domains) if isinstance(platform, Sharing) else component
