# amaranth: UnusedElaboratable=no
"""Parameters that no component can be built with are refused by name."""

from collections.abc import Callable

import pytest

from hw.cim.macro import Macro
from hw.cim.serial import BitSerial, SerialMacro
from hw.numerics.fixed import ToFixed
from hw.numerics.float32 import Float32Pack
from hw.numerics.normalise import Normalise
from hw.numerics.quantiser import BlockQuantiser
from hw.pe.activate import Activate
from hw.pe.activations import ActivationBuffer
from hw.pe.serialiser import Serialiser
from hw.router.topk import TopK

BAD: list[tuple[str, Callable[[], object]]] = [
    ("width", lambda: Normalise(1)),
    ("width", lambda: Float32Pack(1)),
    ("words", lambda: Macro(1)),
    ("words", lambda: SerialMacro(1, 8)),
    ("bits", lambda: SerialMacro(2, 3)),
    ("rows", lambda: SerialMacro(2, 1, rows=0)),
    ("lanes", lambda: SerialMacro(2, 1, lanes=0)),
    ("bits", lambda: BitSerial(16)),
    ("blocks", lambda: BlockQuantiser(blocks=0, spread=1, router_spread=1)),
    ("spread", lambda: BlockQuantiser(blocks=1, spread=0, router_spread=1)),
    ("router_spread", lambda: BlockQuantiser(blocks=1, spread=1, router_spread=0)),
    ("sets", lambda: ActivationBuffer(blocks=1, banks=1, sets=())),
    ("sets", lambda: ActivationBuffer(blocks=1, banks=1, sets=("code8", "middle"))),
    ("give", lambda: BlockQuantiser(blocks=1, spread=1, router_spread=1, give=3)),
    ("take", lambda: BlockQuantiser(blocks=1, spread=1, router_spread=1, take=2)),
    ("lanes", lambda: Serialiser(8, 0)),
    ("drain", lambda: Activate(3)),
    ("k must", lambda: TopK(score_bits=8, candidates=4, k=5)),
    ("k must", lambda: TopK(score_bits=8, candidates=4, k=0)),
    ("fraction", lambda: ToFixed(31)),
    ("fraction", lambda: ToFixed(-1)),
]


@pytest.mark.parametrize(("name", "build"), BAD)
def test_bad_parameter(name: str, build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=name):
        build()
