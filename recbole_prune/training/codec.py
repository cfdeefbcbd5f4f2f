"""A tree of plain values, arrays and tensors <-> the bytes of one safetensors file. No pickle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

_TREE = "tree"
_SCALARS = (bool, int, float, str, type(None))


def is_supported(value: Any) -> bool:
    """Whether a value can be encoded."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _SCALARS):
        return True
    if isinstance(value, torch.Tensor):
        # safetensors has no complex128
        return value.layout in (torch.strided, torch.sparse_coo) and value.dtype is not torch.complex128
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    if isinstance(value, (list, tuple)):
        return all(map(is_supported, value))
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and is_supported(item) for key, item in value.items())
    return False


def encode(tree: Any) -> bytes:
    """Encode nested dicts (keys str or int), lists, tuples, scalars, numpy arrays, dense and sparse tensors.

    Subclasses of these containers and numpy's scalars come back as the plain Python type.

    Raises:
        TypeError: the tree holds anything else.
    """
    tensors: dict[str, torch.Tensor] = {}
    document = json.dumps(_flatten(tree, tensors)).encode()
    tensors[_TREE] = torch.frombuffer(bytearray(document), dtype=torch.uint8)
    return save_safetensors(tensors)


def decode(data: bytes) -> Any:
    """The tree that :func:`encode` was given; tensors come back on the CPU."""
    tensors = load_safetensors(data)
    return _unflatten(json.loads(tensors.pop(_TREE).numpy().tobytes()), tensors)


def _store(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> Any:
    """Where the tensor is found again: its name; an empty one as dtype and shape, which old torch cannot read."""
    if not tensor.numel():
        return {"empty": str(tensor.dtype).partition(".")[2], "shape": list(tensor.shape)}
    name = str(len(tensors))
    tensors[name] = tensor.detach().cpu().contiguous().clone()
    return name


def _fetch(place: Any, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    if isinstance(place, dict):
        return torch.empty(place["shape"], dtype=getattr(torch, place["empty"]))
    return tensors[place]


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray)) and not is_supported(value):
        detail = f", layout {value.layout}" if isinstance(value, torch.Tensor) else ""
        raise TypeError(f"cannot encode a {type(value).__name__} of dtype {value.dtype}{detail}")
    if isinstance(value, torch.Tensor):
        if value.layout == torch.sparse_coo:
            matrix = value.detach().coalesce()
            parts = [_store(matrix.indices(), tensors), _store(matrix.values(), tensors)]
            return {"sparse": parts, "size": list(matrix.shape)}
        return {"tensor": _store(value, tensors)}
    if isinstance(value, np.ndarray):
        raw = torch.from_numpy(np.frombuffer(np.ascontiguousarray(value).tobytes(), dtype=np.uint8).copy())
        return {"array": _store(raw, tensors), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_key(key), _flatten(item, tensors)] for key, item in value.items()]}
    raise TypeError(f"cannot encode a value of type {type(value).__name__}")


def _key(key: Any) -> Any:
    if not isinstance(key, (str, int)):
        raise TypeError(f"cannot encode a key of type {type(key).__name__}")
    return key


def _unflatten(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return _fetch(node["tensor"], tensors)
    if "sparse" in node:
        indices, values = (_fetch(place, tensors) for place in node["sparse"])
        return torch.sparse_coo_tensor(indices, values, node["size"]).coalesce()
    if "array" in node:
        raw = _fetch(node["array"], tensors).numpy().tobytes()
        return np.frombuffer(raw, dtype=node["dtype"]).reshape(node["shape"]).copy()
    if "dict" in node:
        return {key: _unflatten(item, tensors) for key, item in node["dict"]}
    is_tuple = "tuple" in node
    items = [_unflatten(item, tensors) for item in node["tuple" if is_tuple else "list"]]
    return tuple(items) if is_tuple else items
