"""Reads a Hugging Face checkpoint folder: ``config.json`` and ``model.safetensors``, whole or sharded.

Tensors are read when asked for, one at a time and by their byte range, so that a checkpoint larger than
memory can be worked through layer by layer. Nothing in the folder is executed or unpickled, and no name in it
leads out of the folder.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sw_model.errors import ExpertileError
from sw_model.families import DecoderShape, Family, Fields, family
from sw_model.moe import MoELayer
from sw_model.storage import WHOLE, Store, read_json
from sw_model.weights import Outline, Weights

__all__ = ["Checkpoint", "LayerOutline", "ranges"]


@dataclass(frozen=True, kw_only=True)
class LayerOutline:
    """What headers say of a layer: ``layer`` has shapes and rules, and zeros that take no memory as weights.

    stored : elements by how they are stored ("float32", "float16", "bfloat16", "fp8", "mxfp4")
    """

    layer: MoELayer
    stored: Counter[str]


class Checkpoint:
    """One model on disk.

    Use :meth:`open`. Attributes are read-only.

    Attributes
    ----------
    folder : Path
    config : dict
        ``config.json`` as it stands.
    family : str
        ``model_type``.
    n_layers : int
        Decoder layers, MoE or not.
    moe_layers : list of int
        Layers whose block is MoE, ascending.
    shape : DecoderShape
        The decoder around them; ExpertileError for a family whose attention is not supported.
    """

    def __init__(self, folder: Path, config: dict[str, Any], rules: Family, store: Store) -> None:
        self.folder = folder
        self.config = config
        self.family = rules.MODEL_TYPE
        self._rules = rules
        self._fields = Fields(config, str(folder / "config.json"))
        self._store = store
        self.n_layers = self._fields.layers
        self.moe_layers = rules.moe_layers(self._fields)

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Open the folder ``path``.

        Raises
        ------
        ExpertileError
            No such folder, a file missing, truncated or not what it says, or an unknown ``model_type``.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ExpertileError(f"{folder}: no such folder: it should hold config.json and {WHOLE}")
        config = read_json(folder / "config.json")
        rules = family(config.get("model_type"), str(folder / "config.json"))
        return cls(folder, config, rules, Store(folder))

    @cached_property
    def shape(self) -> DecoderShape:
        """The decoder around the MoE blocks."""
        return self._rules.decoder_shape(self._fields)

    def outline(self, n: int) -> LayerOutline:
        """Layer ``n`` as far as headers tell; no weight is read. Raises as :meth:`moe_layer` does."""
        tensors = Outline(self._store)
        return LayerOutline(layer=self._layer(n, tensors), stored=tensors.stored)

    def moe_layer(self, n: int) -> MoELayer:
        """Layer ``n`` in float32, with the codes of weights that are stored quantised.

        Raises
        ------
        ExpertileError
            ``n`` is out of range or not MoE, a rule is not supported, or a tensor is missing, misshapen, of a
            dtype that does not belong there, or not finite. All but the last is found before any is read.
        """
        self._layer(n, Outline(self._store))
        return self._layer(n, Weights(self._store))

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Tensor ``name`` as float32; its size is checked against ``shape``, if given, before it is read.

        Raises
        ------
        ExpertileError
            The tensor is absent, of another shape, of a dtype other than F32, F16, BF16 or (for a matrix) FP8
            with its scales, or not finite.
        """
        shape = self._store.entry(name).shape if shape is None else shape
        tensors = Weights(self._store)
        if len(shape) == 2:
            return tensors.matrix(name, (shape[0], shape[1])).value
        return tensors.floats(name, shape)

    def _layer(self, n: int, tensors: Weights) -> MoELayer:
        if n not in self.moe_layers:
            layers = ranges(self.moe_layers) or "none"
            raise ExpertileError(f"{self.folder}: layer {n} is not a MoE layer: its MoE layers are {layers}")
        try:
            return self._rules.moe_layer(self._fields, n, tensors)
        except ExpertileError as error:
            if str(error).startswith(str(self.folder)):
                raise
            raise ExpertileError(f"{self.folder}: layer {n}: {error}") from None


def ranges(numbers: list[int]) -> str:
    """0-3, 5: ascending numbers, runs shortened."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
