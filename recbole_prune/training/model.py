"""A mask-aware subclass of any RecBole model, made on the fly."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from logging import getLogger
from typing import Any

import torch
from torch import nn

from recbole_prune.anatomy.caches import forget_caches
from recbole_prune.anatomy.propagation import faster_forward
from recbole_prune.errors import ConfigError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.sparse.compact import CompactEmbedding, compact, compact_modules, expand_in_place
from recbole_prune.sparse.propagation import speed_up_propagation
from recbole_prune.sparse.storage import choose_compact
from recbole_prune.training.gradient_record import GradientRecorder


class MaskAware:
    """What :func:`mask_aware` adds to a model: masks on weights and gradients, an optional L2 term.

    ``state_dict`` keeps RecBole's keys and dense tables, whatever the storage.
    """

    masks: MaskSet | None = None
    l2_weight: float = 0.0
    storage: str = "masked"
    dense_moments: bool = False
    _recorder: GradientRecorder | None = None

    def set_masks(self, masks: MaskSet | None) -> None:
        """Wear masks: pruned entries are 0 and get no gradient.

        Tables become compact or stay dense as :attr:`storage` says (``prune_storage``); compact ones hold nothing at
        pruned entries, the others are held at 0 by :meth:`apply_masks`. Parameters change with the storage, so
        optimizers are made afterwards. Wearing the masks that are worn already changes no parameter.
        """
        for handle in getattr(self, "_mask_handles", ()):
            handle.remove()
        if masks is not self.masks:
            for _, module in list(compact_modules(self)):  # type: ignore[arg-type]
                expand_in_place(module)
        self.masks = masks
        self._masked: dict[str, tuple[nn.Parameter, torch.Tensor]] = {}
        self._mask_handles: list[Any] = []
        if masks is not None and not masks.is_dense:
            self._wear(masks)
        self.apply_masks()
        forget_caches(self)  # type: ignore[arg-type]

    def _wear(self, masks: MaskSet) -> None:
        tables, refused = choose_compact(self, masks, self.storage)  # type: ignore[arg-type]
        for name, reason in refused.items() if self.storage == "compact" else ():
            getLogger().warning(f"prune_storage=compact: {name} stays masked, it {reason}")
        for name, module in tables.items():
            if not isinstance(module, CompactEmbedding):
                compact(module, masks[name])
        parameters = dict(self.named_parameters())  # type: ignore[attr-defined]
        for name in [name for name in masks if name not in tables]:
            parameter = parameters[name]
            bits = live_bits(masks[name].to(parameter.device), parameter.dtype)
            self._masked[name] = parameter, bits
            if parameter.requires_grad:
                self._mask_handles.append(parameter.register_hook(partial(self._mask_gradient, name)))

    def _mask_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Masked where it arrives, so that clipping never sees gradients of pruned entries."""
        if self._recorder is not None:
            self._recorder.of(name)(None, gradient.to_dense() if gradient.is_sparse else gradient)
        return gradient if self.dense_moments else _masked(gradient, self._masked[name][1])

    @torch.no_grad()
    def move_masks(self, masks: MaskSet, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Change which entries are live; in every compact table as many as before.

        Parameters stay the same objects. Entries that stay live keep weight and moments; entries that become live
        start at weight 0 with moments 0 (with :attr:`dense_moments`, with those they have).
        """
        states = [optimizer.state for optimizer in optimizers]
        for name, module in compact_modules(self):  # type: ignore[arg-type]
            module.move(masks[name], _moments(states, module.values))
        for name, (parameter, bits) in self._masked.items():
            moved = live_bits(masks[name].to(parameter.device), parameter.dtype)
            for moment in () if self.dense_moments else _moments(states, parameter):
                moment.masked_fill_((moved & ~bits).bool(), 0)
            self._masked[name] = parameter, moved
        self.masks = masks
        self.apply_masks()
        forget_caches(self)  # type: ignore[arg-type]

    def record_gradients(self, recorder: GradientRecorder | None) -> None:
        """From the next batch on, hand the dense gradients of the masked tensors to a recorder; None ends it."""
        self._recorder = recorder
        for name, module in compact_modules(self):  # type: ignore[arg-type]
            module.record = None if recorder is None else recorder.of(name)

    def train(self, mode: bool = True) -> Any:
        """RecBole's switch between training and evaluation; models may have built new graphs since the last one."""
        result = super().train(mode)  # type: ignore[misc]
        speed_up_propagation(self)  # type: ignore[arg-type]
        return result

    def watch_gradients(self, names: list[str]) -> set[str]:
        """A set that fills with those of ``names`` that receive a gradient from now on."""
        received: set[str] = set()
        parameters = dict(self.named_parameters())  # type: ignore[attr-defined]
        for name in names:
            parameters[name].register_hook(lambda _, name=name: received.add(name))
        return received

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set pruned entries to exactly 0.0."""
        for parameter, bits in getattr(self, "_masked", {}).values():
            parameter.detach().view(bits.dtype).bitwise_and_(bits)

    def load_other_parameter(self, para: Any) -> None:
        """RecBole's loading; it may replace whole modules, so the masks are put on again."""
        super().load_other_parameter(para)  # type: ignore[misc]
        caches = {name: getattr(self, name, None) for name in para or {} if name.startswith("restore_")}
        self.set_masks(self.masks)
        for name, value in caches.items():
            setattr(self, name, value)

    def calculate_loss(self, interaction: Any, *args: Any, **kwargs: Any) -> Any:
        """RecBole's loss, plus the L2 term if one is asked for."""
        losses = super().calculate_loss(interaction, *args, **kwargs)  # type: ignore[misc]
        if not self.l2_weight:
            return losses
        penalty = self.l2_weight * batch_l2(self, interaction)
        return (*losses, penalty) if isinstance(losses, tuple) else losses + penalty


def batch_l2(model: Any, interaction: Any) -> torch.Tensor:
    """Half the squared norm of the batch's user, positive and negative rows over the batch size.

    Source: the official LTH-MRS code (methods/lottery_ticket.md, section 1).
    """
    users, items = _user_and_item_table(model)
    rows = [users(interaction[model.USER_ID]), items(interaction[model.ITEM_ID])]
    if model.NEG_ITEM_ID in interaction.interaction:
        rows.append(items(interaction[model.NEG_ITEM_ID]))
    squares = torch.stack([row.pow(2).sum() for row in rows])
    return squares.sum() / (2 * len(rows[0]))


def _user_and_item_table(model: Any) -> tuple[nn.Embedding, nn.Embedding]:
    tables = []
    for name in ("user_embedding", "item_embedding"):
        table = getattr(model, name, None)
        if not isinstance(table, nn.Embedding):
            raise ConfigError(
                f"prune_l2_weight={model.l2_weight} needs a model with the tables user_embedding and item_embedding; "
                f"{type(model).__name__} has no {name}: leave prune_l2_weight out"
            )
        tables.append(table)
    return tables[0], tables[1]


def live_bits(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All bits set where ``mask`` is True, as the integer type of the size of ``dtype``.

    A bitwise and with them makes pruned entries +0.0 whatever they were, NaN included, in a seventh of the time of
    ``masked_fill_`` (on a CPU; both pass over the table once per step).
    """
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[torch.empty(0, dtype=dtype).element_size()]
    return -mask.to(integer)


def _masked(gradient: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    if gradient.is_sparse:
        rows = gradient.coalesce()
        return torch.sparse_coo_tensor(rows.indices(), _masked(rows.values(), bits[rows.indices()[0]]), rows.shape)
    return torch.bitwise_and(gradient.view(bits.dtype), bits).view(gradient.dtype)


def _moments(states: Iterable[Any], parameter: nn.Parameter) -> list[torch.Tensor]:
    """The tensors of a parameter's shape that optimizers keep for it."""
    kept = [value for state in states for value in state.get(parameter, {}).values()]
    return [value for value in kept if isinstance(value, torch.Tensor) and value.shape == parameter.shape]


@cache
def mask_aware(model_class: type) -> type:
    """The mask-aware subclass of a RecBole model class; it keeps the class's name."""
    bases = MaskAware, *faster_forward(model_class), model_class
    return type(model_class.__name__, bases, {"__doc__": model_class.__doc__})
