"""Reads a Hugging Face checkpoint folder: ``config.json`` and ``model.safetensors``, whole or sharded.

Tensors are read when asked for, one at a time, so that a checkpoint larger than memory can be worked through
layer by layer. Nothing in the folder is executed or unpickled, and no name in it leads out of the folder.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (its import teaches NumPy bfloat16, which safetensors then asks for)
import numpy as np
from safetensors import SafetensorError, safe_open

from sw_model.errors import ExpertileError
from sw_model.families import DecoderShape, Family, Fields, family
from sw_model.moe import MoELayer

__all__ = ["Checkpoint"]

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")
_MOST_JSON_BYTES = 1 << 28  # the index of the largest public MoE is 9 MB


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
    moe_layers : list of int
        Layers whose block is MoE, ascending.
    shape : DecoderShape
        The decoder around them.
    """

    def __init__(self, folder: Path, config: dict[str, Any], rules: Family, files: dict[str, str]) -> None:
        self.folder = folder
        self.config = config
        self.family = rules.MODEL_TYPE
        self._rules = rules
        self._fields = Fields(config, str(folder / "config.json"))
        self._files = files  # tensor name -> file name
        self._open_files: dict[str, Any] = {}
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
            raise ExpertileError(f"{folder}: no such folder: it should hold config.json and {_WHOLE}")
        config = _read_json(folder / "config.json")
        rules = family(config.get("model_type"), str(folder / "config.json"))
        if (folder / _WHOLE).exists():
            handle = _open_safetensors(folder / _WHOLE)
            self = cls(folder, config, rules, dict.fromkeys(handle.keys(), _WHOLE))
            self._open_files[_WHOLE] = handle
            return self
        if (folder / _INDEX).exists():
            return cls(folder, config, rules, _shards(folder / _INDEX))
        raise ExpertileError(f"{folder}: neither {_WHOLE} nor {_INDEX} is here: is the download complete?")

    @property
    def n_layers(self) -> int:
        """Decoder layers, MoE or not."""
        return self.shape.layers

    @cached_property
    def shape(self) -> DecoderShape:
        """The decoder around the MoE blocks."""
        return self._rules.decoder_shape(self._fields)

    def moe_layer(self, n: int) -> MoELayer:
        """Layer ``n`` in float32.

        Raises
        ------
        ExpertileError
            ``n`` is out of range or not MoE, or a tensor is missing, misshapen or not finite.
        """
        if n not in self.moe_layers:
            layers = _ranges(self.moe_layers) or "none"
            raise ExpertileError(f"{self.folder}: layer {n} is not a MoE layer: its MoE layers are {layers}")
        return self._rules.moe_layer(self._fields, n, self.tensor)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Tensor ``name`` as float32; its size is checked against ``shape``, if given, before it is read.

        Raises
        ------
        ExpertileError
            The tensor is absent, of another shape, of a dtype other than F32, F16 or BF16, or not finite.
        """
        if name not in self._files:
            raise ExpertileError(f"{self.folder}: tensor {name} is missing: the {self.family} family has one")
        path = self.folder / self._files[name]
        try:
            entry = self._file(self._files[name]).get_slice(name)
            have, dtype = tuple(entry.get_shape()), entry.get_dtype()
            if shape is not None and have != shape:
                raise ExpertileError(
                    f"{path}: tensor {name} has shape {list(have)}: config.json makes it {list(shape)}"
                )
            if dtype not in _DTYPES:
                raise ExpertileError(f"{path}: tensor {name} is {dtype}: {', '.join(_DTYPES)} can be read")
            value = np.array(self._file(self._files[name]).get_tensor(name)).astype(np.float32, copy=False)
        except (SafetensorError, OSError) as error:
            raise ExpertileError(f"{path}: tensor {name} cannot be read ({_line(error)})") from error
        if not np.isfinite(value).all():
            raise ExpertileError(f"{path}: tensor {name} holds NaN or infinity: the checkpoint is damaged")
        return value

    def _file(self, name: str) -> Any:
        if name not in self._open_files:
            self._open_files[name] = _open_safetensors(self.folder / name)
        return self._open_files[name]


def _open_safetensors(path: Path) -> Any:
    if not path.is_file():
        raise ExpertileError(f"{path}: no such file: is the download complete?")
    try:
        return safe_open(path, framework="numpy")  # checks the header against the size of the file
    except (SafetensorError, OSError) as error:
        raise ExpertileError(f"{path}: no whole safetensors file ({_line(error)}): fetch it anew") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ExpertileError(f"{path}: larger than {_MOST_JSON_BYTES} bytes: this is no such file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExpertileError(f"{path}: no such file: --checkpoint takes a Hugging Face folder") from None
    except OSError as error:
        raise ExpertileError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ExpertileError):
            raise
        raise ExpertileError(f"{path}: not JSON ({_line(error)})") from error
    if not isinstance(value, dict):
        raise ExpertileError(f"{path}: not a JSON object")
    return value


def _shards(path: Path) -> dict[str, str]:
    files = _read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ExpertileError(f"{path}: weight_map is missing: it maps tensor names to files")
    for file in set(map(str, files.values())):
        # A file of this folder and nothing else: no folders, no "..", no drive letters.
        if Path(file).name != file or any(c in file for c in "\\:\0") or not file.endswith(".safetensors"):
            raise ExpertileError(f"{path}: {file[:60]!r} does not name a safetensors file of this folder")
    return {str(name): str(file) for name, file in files.items()}


def _ranges(numbers: list[int]) -> str:
    """0-3, 5: ascending numbers, runs shortened."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
