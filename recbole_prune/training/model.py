"""A mask-aware subclass of any RecBole model, made on the fly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from logging import getLogger
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import nn

from recbole_prune.anatomy.caches import forget_caches, on_device, refresh
from recbole_prune.anatomy.losses import recommendation_loss
from recbole_prune.anatomy.propagation import faster_parts
from recbole_prune.anatomy.units.table import anatomy_of
from recbole_prune.anatomy.vectors import shared_propagation
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.unit_masks import live_of, units_of
from recbole_prune.sparse.compact import CompactEmbedding, compact, compact_modules, expand_in_place
from recbole_prune.sparse.propagation import speed_up_propagation
from recbole_prune.sparse.shrinking import Shrunk
from recbole_prune.sparse.storage import choose_compact
from recbole_prune.training.gradient_record import GradientRecorder

if TYPE_CHECKING:  # any model class of RecBole, see mask_aware
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import AbstractRecommender as _Model
else:
    _Model = object

Losses = Union[torch.Tensor, "tuple[torch.Tensor, ...]"]


class MaskAware(_Model):
    """What :func:`mask_aware` adds to a model: masks on weights and gradients, losses of what trains along.

    ``state_dict`` keeps RecBole's keys and dense tables, whatever the storage.

    Attributes:
        masks: those that are worn.
        storage: how pruned tensors are held (``prune_storage``).
        whole_units: the masks are zero on whole units. All that belongs to such a unit is then 0, biases too, and
            unless :attr:`storage` is ``masked`` it is taken out wherever that changes no score.
        shrunk: what says how tensors have got smaller by that; None where they have not.
        dense_moments: pruned entries keep gradients and moments.
        own_products: multiply the model's graphs in this package's way, equal up to rounding (``prune_fused``).
        added_losses: called with a batch; scalars by name that are added to its recommendation loss. Vectors and
            logits that they ask ``anatomy/`` for come from what that loss has computed.
        own_loss: called after that; the factor on the recommendation loss, which 0 leaves out.
        noted: paths of methods, of the model or its modules, whose calls in that loss are kept for the added ones.
        loss_in_work: while :attr:`added_losses` is called, the recommendation loss of the batch; else None.
    """

    masks: MaskSet | None = None
    added_losses: Callable[[Interaction], Mapping[str, torch.Tensor]] | None = None
    own_loss: Callable[[], float | torch.Tensor] | None = None
    noted: tuple[str, ...] = ()
    loss_in_work: Losses | None = None
    storage: str = "masked"
    whole_units: bool = False
    shrunk: Shrunk | None = None
    dense_moments: bool = False
    own_products: bool = True
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
            for _, module in list(compact_modules(self)):
                expand_in_place(module)
        self._unshrink()
        self.masks = masks
        self._masked: dict[str, tuple[nn.Parameter, torch.Tensor]] = {}
        self._mask_handles: list[Any] = []
        if masks is not None and not masks.is_dense:
            self._wear(masks)
        self.apply_masks()
        forget_caches(self)

    def load_trained(self, weights: Mapping[str, torch.Tensor], masks: MaskSet | None) -> None:
        """Load trained weights (a ``state_dict``), put masks on and compute anew what follows from the weights."""
        self.set_masks(None)
        self.load_state_dict(weights)
        self.set_masks(masks)
        refresh(self)

    def state_dict(
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """RecBole's keys with tensors of full size."""
        state: dict[str, Any] = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if self.shrunk is not None:
            for name, tensor in state.items():
                state[name] = self.shrunk.expanded(name, tensor)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Take over tensors of full size, or of the size that the model has."""
        if self.shrunk is not None:
            state_dict = {name: self.shrunk.narrowed(name, tensor) for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict)

    def _unshrink(self) -> None:
        if self.shrunk is not None:
            self.shrunk.undo()
            self.shrunk = None

    @contextmanager
    def of_full_size(self) -> Iterator[None]:
        """While it is open, every tensor has the size of the dense model's, and what is cached is forgotten."""
        if self.shrunk is None:
            yield
            return
        again = self.shrunk.again
        self._unshrink()
        forget_caches(self)
        try:
            yield
        finally:
            forget_caches(self)
            self.shrunk = again()

    def _wear(self, masks: MaskSet) -> None:
        if self.whole_units:
            self._wear_units(masks)
            return
        tables, refused = choose_compact(self, masks, self.storage)
        for name, reason in refused.items() if self.storage == "compact" else ():
            getLogger().warning(f"prune_storage=compact: {name} stays masked, it {reason}")
        for name, module in tables.items():
            if not isinstance(module, CompactEmbedding):
                compact(module, masks[name])
        self._mask({name: masks[name] for name in masks if name not in tables})

    def _wear_units(self, masks: MaskSet) -> None:
        """Take out the units that the masks are zero on, and mask what cannot be taken out."""
        anatomy = anatomy_of(self)
        live = live_of(anatomy, masks, self)
        if self.storage != "masked":
            kept = units_of(anatomy, masks)
            exact = {group.name: kept[group.name] for group in anatomy if not group.inexact}
            sizes, scales = anatomy.sizes(exact), anatomy.scales(exact)
            self.shrunk = Shrunk(self, anatomy.positions(exact, self), sizes, scales)
            live = {name: self.shrunk.selected(name, mask) for name, mask in live.items()}
        self._mask({name: mask for name, mask in live.items() if not mask.all()})

    def _mask(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Hold what is pruned of dense parameters at 0."""
        parameters = dict(self.named_parameters())
        for name, mask in masks.items():
            parameter = parameters[name]
            self._masked[name] = parameter, live_bits(mask.to(parameter.device), parameter.dtype)
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
        for name, module in compact_modules(self):
            module.move(masks[name], _moments(states, module.values))
        for name, (parameter, bits) in self._masked.items():
            moved = live_bits(masks[name].to(parameter.device), parameter.dtype)
            for moment in () if self.dense_moments else _moments(states, parameter):
                moment.masked_fill_((moved & ~bits).bool(), 0)
            self._masked[name] = parameter, moved
        self.masks = masks
        self.apply_masks()
        forget_caches(self)

    def record_gradients(self, recorder: GradientRecorder | None) -> None:
        """From the next batch on, hand the dense gradients of the masked tensors to a recorder; None ends it."""
        self._recorder = recorder
        for name, module in compact_modules(self):
            module.record = None if recorder is None else recorder.of(name)

    def train(self, mode: bool = True) -> Any:
        """RecBole's switch between training and evaluation; models may have built new graphs since the last one."""
        result = super().train(mode)
        if self.own_products:
            speed_up_propagation(self)
        return result

    def forget_recorded_gradients(self) -> None:
        """Drop what backward passes before the step's own have recorded of this batch."""
        if self._recorder is not None:
            self._recorder.drop_batch()

    def watch_gradients(self, names: list[str]) -> set[str]:
        """A set that fills with those of ``names`` that receive a gradient from now on."""
        received: set[str] = set()
        parameters = dict(self.named_parameters())
        for name in names:
            parameters[name].register_hook(lambda _, name=name: received.add(name))
        return received

    @property
    def masked_parameters(self) -> list[nn.Parameter]:
        """Dense parameters that :meth:`apply_masks` holds at 0 where they are pruned."""
        return [parameter for parameter, _ in getattr(self, "_masked", {}).values()]

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set pruned entries to exactly 0.0."""
        for parameter, bits in getattr(self, "_masked", {}).values():
            parameter.detach().view(bits.dtype).bitwise_and_(bits)

    def load_other_parameter(self, para: Any) -> None:
        """RecBole's loading, on the model's device; it may replace whole modules, so the masks are put on again."""
        with self.of_full_size():
            super().load_other_parameter(on_device(para, next(self.parameters()).device))
        caches = {name: getattr(self, name, None) for name in para or {} if name.startswith("restore_")}
        self.set_masks(self.masks)
        for name, value in caches.items():
            setattr(self, name, value)

    def with_added_losses(self, losses: Losses, interaction: Interaction) -> Losses:
        """The recommendation loss, :attr:`own_loss` times, plus what :attr:`added_losses` gives for the batch.

        Of several losses the first takes it: NCL's trainer drops the last one while it warms up.
        """
        if self.added_losses is None:
            return losses
        self.loss_in_work = losses
        try:
            terms = self.added_losses(interaction).values()
        finally:
            del self.loss_in_work  # no state of the model
        factor = 1.0 if self.own_loss is None else self.own_loss()
        if isinstance(factor, torch.Tensor) or factor != 1.0:
            weighed = [_times(factor, loss) for loss in (losses if isinstance(losses, tuple) else (losses,))]
            losses = tuple(weighed) if isinstance(losses, tuple) else weighed[0]
        for term in terms:
            losses = (losses[0] + term, *losses[1:]) if isinstance(losses, tuple) else losses + term
        return losses


def live_bits(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All bits set where ``mask`` is True, as the integer type of the size of ``dtype``.

    A bitwise and with them makes pruned entries +0.0 whatever they were, NaN included, in a seventh of the time of
    ``masked_fill_`` (on a CPU; both pass over the table once per step).
    """
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[torch.empty(0, dtype=dtype).element_size()]
    return -mask.to(integer)


def _times(factor: float | torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """What is left out may be infinite."""
    return factor * loss if isinstance(factor, torch.Tensor) or factor else torch.zeros_like(loss)


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
    name = recommendation_loss(model_class)

    def loss(self: MaskAware, interaction: Interaction, *args: object, **kwargs: object) -> Losses:
        own: Callable[..., Losses] = getattr(super(made, self), name)
        if self.added_losses is None:
            return own(interaction, *args, **kwargs)
        with shared_propagation(self, self.noted):
            return self.with_added_losses(own(interaction, *args, **kwargs), interaction)

    loss.__name__ = name
    bases = MaskAware, *faster_parts(model_class), model_class
    made = type(model_class.__name__, bases, {"__doc__": model_class.__doc__, name: loss})
    return made
