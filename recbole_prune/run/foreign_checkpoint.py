"""Checkpoints of RecBole that a user names: settings and weights come out of them, and nothing in them is run.

Such a file is a pickle, which may call any function while it is read. ``torch.load(weights_only=True)`` knows no
``Config``, which every checkpoint of RecBole holds. So the pickle is read by an unpickler that knows how tensors,
arrays, sparse matrices and plain containers are made, and puts an inert object in the place of everything else.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from scipy import sparse

from recbole_prune.compat.hooks import Overlay, replaced
from recbole_prune.errors import ConfigError

_TORCH = ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_sparse_tensor")
_MATRICES = ("csr_matrix", "csc_matrix", "coo_matrix")
_KNOWN: dict[tuple[str, str], Any] = {
    **{("torch._utils", name): getattr(torch._utils, name) for name in _TORCH},
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "matrix"): np.matrix,
    ("numpy.matrixlib.defmatrix", "matrix"): np.matrix,
    ("numpy", "dtype"): np.dtype,
    # numpy moved these from numpy.core to numpy._core
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): np.float64(1).__reduce__()[0] for core in ("core", "_core")},
}


class Inert:
    """What stands where a checkpoint has an object of a class that is no plain data; it does nothing.

    Attributes:
        state: what the object held.
    """

    def __new__(cls, *arguments: object, **named: object) -> Inert:
        """Whatever it is made with."""
        made = super().__new__(cls)
        made.state = {}
        return made

    state: dict[str, Any]

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __call__(self, *arguments: object, **named: object) -> Inert:
        """What a function would make (our own checkpoints ask ``getattr`` for ``object.__new__``)."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        # with slots a state is a pair
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            self.state.update(part if isinstance(part, dict) else {})

    def __setitem__(self, name: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Passed over."""

    def extend(self, values: object) -> None:
        """Passed over."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module.startswith("scipy.sparse") and name in _MATRICES:
            return getattr(sparse, name)
        found = getattr(torch, name, None) if module == "torch" else None
        return found if isinstance(found, torch.dtype) else type(name.rpartition(".")[2], (Inert,), {})


_PICKLE = Overlay(pickle, Unpickler=_Unpickler, load=lambda file, **named: _Unpickler(file, **named).load())


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of RecBole holds.

    Attributes:
        model: name of the model.
        settings: what its user set, with the dataset and where that lay.
        state: weights by name.
        others: what the model keeps beside its weights (all that models without gradients have), by name.
        valid: the best validation score by the name of its metric; empty where none is known.
    """

    model: str
    settings: dict[str, Any]
    state: dict[str, torch.Tensor]
    others: dict[str, Any]
    valid: dict[str, float]


def read_checkpoint(data: bytes, place: str) -> Checkpoint:
    """Read a checkpoint that plain RecBole or a run of ours has written.

    Args:
        data: the file.
        place: what to call it in messages.

    Raises:
        ConfigError: it is none, or is damaged.
    """
    content = _unpickle(data, place)
    config = content.get("config") if isinstance(content, Mapping) else None
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(config, Inert) or not isinstance(state, Mapping):
        raise ConfigError(f"{place} is no checkpoint of RecBole: it has no config or no state_dict")
    held = config.state
    model, dataset, given, final = (
        held.get(name) for name in ("model", "dataset", "external_config_dict", "final_config_dict")
    )
    if not (
        isinstance(model, str) and isinstance(dataset, str) and isinstance(given, dict) and isinstance(final, dict)
    ):
        raise ConfigError(f"{place} is no checkpoint of RecBole: its config has no model, dataset or settings")
    if not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()):
        raise ConfigError(f"{place} is damaged: its state_dict holds something else than tensors")
    internal = held.get("internal_config_dict")
    usual = internal.get("data_path") if isinstance(internal, dict) else None
    settings = {**({"data_path": usual} if isinstance(usual, str) else {}), **given}
    score, metric = content.get("best_valid_score"), final.get("valid_metric")
    known = isinstance(metric, str) and isinstance(score, (int, float)) and np.isfinite(score)
    others = content.get("other_parameter")
    return Checkpoint(
        model=model,
        settings={**settings, "model": model, "dataset": dataset},
        state={name: tensor.detach().cpu() for name, tensor in state.items()},
        others={name: value for name, value in others.items() if _is_data(value)} if isinstance(others, dict) else {},
        valid={str(metric).lower(): float(score)} if known else {},
    )


def _unpickle(data: bytes, place: str) -> Any:
    """The content of a file that ``torch.save`` wrote, as far as it is data."""
    try:
        names = zipfile.ZipFile(BytesIO(data)).namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ConfigError(f"{place} is a program of TorchScript and no checkpoint of RecBole")
        with replaced(torch.serialization, pickle=_PICKLE):  # torch 1.13 passes over the pickle_module that it is given
            return torch.load(BytesIO(data), map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # a pickle can fail in any way
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{place} is no checkpoint of RecBole, or is damaged: {type(error).__name__}: {text}"
        ) from error


def _is_data(value: object) -> bool:
    """Whether nothing inert is inside."""
    if isinstance(value, Mapping):
        return all(map(_is_data, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return not isinstance(value, Inert)
