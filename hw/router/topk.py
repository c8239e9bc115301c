"""Top-k: an insertion sorter that takes a candidate a cycle."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["TopK", "entry_layout"]


def entry_layout(score_bits: int, candidates: int) -> data.StructLayout:
    """A scored candidate; entries that are not ``valid`` come last."""
    return data.StructLayout(
        {"score": signed(score_bits), "index": max(1, (candidates - 1).bit_length()), "valid": 1}
    )


class TopK(wiring.Component):
    """Keeps the ``k`` best of the scores seen since ``clear``, best first, ties to the one that came first.

    Parameters
    ----------
    score_bits : width of the signed scores
    candidates : number of candidates that can be told apart
    k : entries kept

    Members
    -------
    clear : forget everything
    score, index, valid : a candidate
    best : the entries, valid in the cycle after a candidate

    Latency: 1. Throughput: one a cycle.
    """

    def __init__(self, *, score_bits: int, candidates: int, k: int) -> None:
        if not 1 <= k <= candidates:
            raise ValueError(f"k must be 1 .. {candidates}, not {k}")
        self._entry = entry_layout(score_bits, candidates)
        self._k = k
        super().__init__(
            {
                "clear": In(1),
                "score": In(signed(score_bits)),
                "index": In(self._entry["index"].shape),
                "valid": In(1),
                "best": Out(data.ArrayLayout(self._entry, k)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beats = [Signal(name=f"beats{j}") for j in range(self._k)]
        for j in range(self._k):
            entry = self.best[j]
            m.d.comb += beats[j].eq(~entry.valid | (self.score > entry.score))
            with m.If(self.valid & beats[j]):
                m.d.sync += [entry.score.eq(self.score), entry.index.eq(self.index), entry.valid.eq(1)]
                if j > 0:
                    with m.If(beats[j - 1]):
                        m.d.sync += entry.eq(self.best[j - 1])
            with m.If(self.clear):
                m.d.sync += entry.valid.eq(0)
        return m
