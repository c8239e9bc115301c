"""Top-k: an insertion sorter that takes a score a cycle."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.router.scores import LOGIT_BITS

__all__ = ["TopK", "entry_layout"]


def entry_layout(experts: int) -> data.StructLayout:
    """A scored expert; entries that are not ``valid`` come last."""
    return data.StructLayout(
        {"score": signed(LOGIT_BITS), "expert": max(1, (experts - 1).bit_length()), "valid": 1}
    )


class TopK(wiring.Component):
    """Keeps the ``k`` best of the scores seen since ``clear``, best first, ties to the one that came first.

    Parameters
    ----------
    experts : number of experts that can be told apart
    k : entries kept

    Members
    -------
    clear : forget everything
    score, expert, valid : a candidate
    best : the entries, valid in the cycle after a candidate

    Latency: 1. Throughput: one a cycle.
    """

    def __init__(self, *, experts: int, k: int) -> None:
        if not 1 <= k <= experts:
            raise ValueError(f"k must be 1 .. {experts}, not {k}")
        self._entry = entry_layout(experts)
        self._k = k
        super().__init__(
            {
                "clear": In(1),
                "score": In(signed(LOGIT_BITS)),
                "expert": In(self._entry["expert"].shape),
                "valid": In(1),
                "best": Out(data.ArrayLayout(self._entry, k)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beats = Signal(self._k)
        m.d.comb += beats.eq(
            sum((~self.best[j].valid | (self.score > self.best[j].score)) << j for j in range(self._k))
        )
        with m.If(self.valid):
            for j in range(self._k):
                entry = self.best[j]
                with m.If(beats[j]):
                    if j > 0:
                        with m.If(beats[j - 1]):
                            m.d.sync += entry.eq(self.best[j - 1])
                        with m.Else():
                            self._take(m, entry)
                    else:
                        self._take(m, entry)
        with m.If(self.clear):
            for j in range(self._k):
                m.d.sync += self.best[j].valid.eq(0)
        return m

    def _take(self, m: Module, entry: data.View) -> None:
        m.d.sync += [entry.score.eq(self.score), entry.expert.eq(self.expert), entry.valid.eq(1)]
