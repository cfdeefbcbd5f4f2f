"""Small dense tensors in the place of larger ones of which whole slices are 0, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

# of every tensor, by its name in ``state_dict``, the positions that stay along some of its axes, ascending
Kept = Mapping[str, Mapping[int, torch.Tensor]]

_SIZES: tuple[tuple[Any, tuple[tuple[str, str, int], ...]], ...] = (
    (nn.Linear, (("out_features", "weight", 0), ("in_features", "weight", 1))),
    (nn.Embedding, (("embedding_dim", "weight", 1), ("num_embeddings", "weight", 0))),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), (("out_channels", "weight", 0),)),
    (nn.modules.batchnorm._NormBase, (("num_features", "weight", 0), ("num_features", "running_mean", 0))),
    (nn.RNNBase, (("hidden_size", "weight_hh_l0", 1), ("input_size", "weight_ih_l0", 1))),
    (nn.RNNCellBase, (("hidden_size", "weight_hh", 1), ("input_size", "weight_ih", 1))),
)
Attributes = Mapping[str, object]
Scales = Mapping[str, float]
_NO_SCALES: Scales = {}
Value = TypeVar("Value")


class Shrunk:
    """A model whose tensors have lost the slices that are not ``kept``.

    Parameters stay the same objects; their data is what gets smaller, so optimizers are made afterwards.

    Args:
        model: any module; it is changed in place.
        kept: what stays, by tensor and axis.
        attributes: values for what modules keep as plain attributes, by dotted path.
        scales: tensors whose values are multiplied when they get smaller, and divided again on the way back; also
            tensors that lose nothing.
    """

    def __init__(self, model: nn.Module, kept: Kept, attributes: Attributes, scales: Scales = _NO_SCALES) -> None:
        self.again = partial(Shrunk, model, kept, attributes, scales)
        tensors = all_tensors(model)
        self._model = model
        self._kept, self._scales = _under_all_names(tensors, kept), _under_all_names(tensors, scales)
        self._changed = list(dict.fromkeys([*self._kept, *self._scales]))
        self._shapes = {name: tensors[name].shape for name in self._changed}
        self._replaced: list[tuple[nn.Module, str, object]] = []
        for name, tensor in _once(tensors, self._changed):
            _resize(tensor, self.narrowed(name, tensor.detach()))
        self._set_sizes(attributes)

    def _set_sizes(self, attributes: Attributes) -> None:
        modules = dict(self._model.named_modules())
        for module in modules.values():
            for kinds, sizes in _SIZES:
                for attribute, tensor, axis in sizes if isinstance(module, kinds) else ():
                    held = getattr(module, tensor, None)
                    if held is not None:
                        self._replace(module, attribute, held.shape[axis])
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                self._replace(module, "in_channels", module.weight.shape[1] * module.groups)
            if isinstance(module, nn.RNNBase) and next(module.parameters()).is_cuda:
                module.flatten_parameters()
        for path, value in attributes.items():
            owner, _, name = path.rpartition(".")
            self._replace(modules[owner], name, value)

    def _replace(self, module: nn.Module, name: str, value: object) -> None:
        before = getattr(module, name)
        if before is not value and not (isinstance(value, (int, float)) and before == value):
            self._replaced.append((module, name, before))
            setattr(module, name, value)

    def undo(self) -> None:
        """Make the model as large as it was, with 0 in what was taken out."""
        for name, tensor in _once(all_tensors(self._model), self._changed):
            _resize(tensor, self.expanded(name, tensor.detach()))
        for module, name, before in reversed(self._replaced):
            setattr(module, name, before)

    def shape_before(self, name: str, shape: torch.Size) -> torch.Size:
        """Of a tensor of the large model."""
        return self._shapes.get(name, shape)

    def narrowed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What stays of a tensor of the large model, scaled; one that is small already as it is.

        A tensor that is only scaled is always taken for that of the large model: both have one shape.
        """
        small = self.selected(name, tensor)
        scaled = name in self._scales and tensor.shape == self._shapes[name]
        return small * self._scales[name] if scaled else small

    def selected(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The entries of what :meth:`narrowed` keeps, of anything of the tensor's shape, such as its mask."""
        if name in self._shapes and tensor.shape == self._shapes[name]:
            for axis, positions in self._kept.get(name, {}).items():
                tensor = tensor.index_select(axis, positions.to(tensor.device))
        return tensor

    def expanded(self, name: str, tensor: torch.Tensor, power: int = -1) -> torch.Tensor:
        """A tensor of the shrunk model as large as it was, 0 where something was taken out.

        Args:
            name: of the tensor.
            tensor: its value, or something of its shape.
            power: how that grows with the scale: -1 values, 1 gradients, 2 their squares.
        """
        if name not in self._shapes:
            return tensor
        for axis, positions in self._kept.get(name, {}).items():
            shape = list(tensor.shape)
            shape[axis] = self._shapes[name][axis]
            tensor = tensor.new_zeros(shape).index_copy_(axis, positions.to(tensor.device), tensor)
        if name not in self._scales:
            return tensor
        return tensor / self._scales[name] if power == -1 else tensor * self._scales[name] ** power


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under all their names."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _under_all_names(tensors: Mapping[str, torch.Tensor], values: Mapping[str, Value]) -> dict[str, Value]:
    """What is said of a tensor under one of its names, under all of them."""
    said = {id(tensors[name]): value for name, value in values.items()}
    return {name: said[id(tensor)] for name, tensor in tensors.items() if id(tensor) in said}


def _once(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of ``names`` once, whatever it is called."""
    seen: set[int] = set()
    for name in names:
        if id(tensors[name]) not in seen:
            seen.add(id(tensors[name]))
            yield name, tensors[name]


def _resize(tensor: torch.Tensor, value: torch.Tensor) -> None:
    tensor.grad = None
    tensor.data = value.contiguous().clone()
