"""Builds what a run trains with: data, models, trainers, and the scope of what may be pruned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.transform import construct_transform
from recbole.utils import EvaluatorType, ModelType, get_trainer, init_seed

from recbole_prune import garbage
from recbole_prune.anatomy.losses import batch_losses
from recbole_prune.artifact.export import seen_by_users
from recbole_prune.config.evaluation import check_cutoffs
from recbole_prune.data import random_streams
from recbole_prune.data.batches import assemble_batches_fast, first_batch
from recbole_prune.data.evaluation_mask import mask_training_items_only
from recbole_prune.data.samplers import samplers_over_arrays
from recbole_prune.data.saved import create_dataset, data_preparation
from recbole_prune.data.training_pairs import consumed_items, consumptions
from recbole_prune.data.used_ids import UsedIds
from recbole_prune.data.user_uniform import sample_users_uniformly
from recbole_prune.errors import ConfigError, NothingToPrune, in_one_line
from recbole_prune.masking import padding
from recbole_prune.masking.scope import Scope, find_scope
from recbole_prune.run.labels import check_labels
from recbole_prune.scoring.flops_counter import draw_like_flops_counter
from recbole_prune.scoring.popularity import Popularity
from recbole_prune.scoring.probe import Probe, undisturbed
from recbole_prune.training.l2 import BatchL2
from recbole_prune.training.model import MaskAware, mask_aware
from recbole_prune.training.parts import Part
from recbole_prune.training.session import Session
from recbole_prune.training.trainer import MaskAwareTrainer, mask_aware_trainer

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset

    from recbole_prune.config.prune_config import PruneConfig

Changes = Mapping[str, Any]
NO_TEST_DATA = "there is no test data: tickets are picked on the validation data and not tested"
UNTRAINED = "receives no gradient from any loss of the model"
# LINE draws for every batch which of its tables it trains
_MOST_PASSES = 30


class Workshop:
    """Data and models of one configuration.

    Attributes:
        config: the checked settings.
        dataset: RecBole's dataset.
        seen: what each user has consumed.
        loaders: its training, validation and test dataloaders.
        steps_per_epoch: batches of an epoch, as far as they are known before one.
    """

    @garbage.not_searched()
    def __init__(self, config: PruneConfig) -> None:
        self.config = config
        if config["MODEL_TYPE"] in (ModelType.TRADITIONAL, ModelType.DECISIONTREE):
            raise NothingToPrune(f"{config['model']} is not trained by gradient: it has no weights to prune")
        init_seed(config["seed"], config["reproducibility"])
        with in_one_line(f"load the dataset {config['dataset']}"):
            cache = Path(config.settings.output_dir, config["dataset"]) if config.settings.cache_dataset else None
            self.dataset: Dataset = create_dataset(config, cache)
            getLogger().info(self.dataset)
            if self.dataset.iid_field is not None:
                check_cutoffs(config, self.dataset.item_num)
            self.seen = seen_by_users(self.dataset, config)
            # dataloaders that are found on disk leave the dataset without the order of a split
            found = config["save_dataloaders"] or config["dataloaders_save_path"]
            self._split_dataset = _split_copy(self.dataset) if found else self.dataset
            # a saved loader must load where this package is not installed: it keeps RecBole's classes
            with nullcontext() if config["save_dataloaders"] else samplers_over_arrays():
                self.loaders: list[AbstractDataLoader] = list(data_preparation(config, self.dataset))
        construct_transform(config)  # it sets what models ask for, also where loaders were found on disk
        if config["save_dataloaders"]:
            random_streams.share_the_global_stream(self.loaders)
        self._check_parts()
        if config.settings.prune_eval_mask == "train":
            self._mask_training_items_only()
        assemble_batches_fast(self.train_data)
        if config.settings.prune_user_uniform:
            sample_users_uniformly(self.train_data, config)
        # a loader of knowledge graphs has another length in another mode
        self.steps_per_epoch = len(self.train_data)

    @property
    def train_data(self) -> AbstractDataLoader:
        """The training batches."""
        return self.loaders[0]

    @property
    def select_data(self) -> AbstractDataLoader:
        """What picks epochs and tickets (``prune_select``)."""
        return self.loaders[2 if self.config.settings.prune_select == "test" else 1]

    @property
    def test_data(self) -> AbstractDataLoader:
        """What is read once per ticket."""
        return self.loaders[2]

    @cached_property
    def popularity(self) -> Popularity | None:
        """How popular items are in the training data; None where no items are ranked."""
        if self.config["eval_type"] != EvaluatorType.RANKING:
            return None
        counts = consumptions(consumed_items(self.train_data._dataset))
        return Popularity.of(counts, self.config.settings.report_tail_share)

    def _check_parts(self) -> None:
        """Refuse a split that leaves nothing to train on or to pick epochs and tickets on; test data may be missing."""
        arguments, select = self.config["eval_args"], self.config.settings.prune_select
        split = f"eval_args={arguments}"
        if not len(self.train_data):
            raise ConfigError(f"{split} leaves no training data")
        if not len(self.select_data):
            name, other = ("test", "valid") if select == "test" else ("validation", "test")
            raise ConfigError(
                f"{split} leaves no {name} data, but prune_select={select} picks epochs and tickets on it: "
                f"give it a part of the split, or set prune_select={other}"
            )
        if not len(self.test_data):
            getLogger().warning(f"{NO_TEST_DATA} ({split})")
        check_labels(self.config, self.loaders)

    def _mask_training_items_only(self) -> None:
        training = self.train_data._dataset
        users, items = (training.inter_feat[field].numpy() for field in (training.uid_field, training.iid_field))
        used = UsedIds(users, items, training.user_num, training.item_num)
        for loader in self.loaders[1:]:
            if len(loader):
                mask_training_items_only(loader, used)

    def with_config(self, config: PruneConfig) -> Workshop:
        """The same data under settings of this package that differ; no setting of RecBole's may."""
        other = object.__new__(Workshop)
        vars(other).update(vars(self), config=config)
        return other

    def config_with(self, changes: Changes | None) -> PruneConfig:
        """The run's config, or a copy with other values for settings of RecBole's."""
        return self.config.with_changes(**changes) if changes else self.config

    def reseed(self) -> None:
        """Data order and random streams of the start of a training."""
        random_streams.reseed(self.loaders, self.config["seed"])
        init_seed(self.config["seed"] + self.config["local_rank"], self.config["reproducibility"])

    def build_model(self, changes: Changes | None = None) -> MaskAware:
        """RecBole's model as a mask-aware subclass, built under the run's seed with everything reset.

        Building anew is the rewind: weights, caches, counters and what a model samples in its constructor come
        out as in the dense run, and the random streams and data order start over, where RecBole's own run has them.

        Args:
            changes: settings of RecBole's that differ from the run's.
        """
        config = self.config_with(changes)
        self.reseed()
        made = mask_aware(config.model_class)(config, self.train_data._dataset)
        model: MaskAware = made.to(config["device"])
        model.storage = config.settings.prune_storage
        model.own_products = config.settings.prune_fused
        draw_like_flops_counter(model, config, self._split_dataset)
        return model

    def scored_model(self, changes: Changes | None = None) -> MaskAware:
        """A newly built model that has scored a few users once.

        Raises:
            RecBoleError: RecBole cannot build the model, or score with it.
        """
        config = self.config_with(changes)
        with in_one_line(f"build {config['model']}"):
            model = self.build_model(changes)
        with in_one_line(f"score with {config['model']}"), undisturbed(model):
            probe = Probe(model, config, self.dataset)  # an artifact is compared with the model by one
            probe.score(model, next(probe.blocks()))
        return model

    def fresh_weights(self, offset: int, changes: Changes | None = None) -> dict[str, torch.Tensor]:
        """Initial weights under the seed moved by ``offset``; the random streams stay where they are."""
        config = self.config_with(changes)
        with random_streams.preserved_random_streams():
            init_seed(config["seed"] + offset, config["reproducibility"])
            model = config.model_class(config, self.train_data._dataset)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def parts(self) -> tuple[Part, ...]:
        """What trains along with every ticket of the run."""
        weight = self.config.settings.prune_l2_weight
        return (BatchL2(weight),) if weight and not self.config.has_own_l2 else ()

    def trainer(self, model: MaskAware, session: Session, changes: Changes | None = None) -> MaskAwareTrainer:
        """RecBole's trainer for the model, mask-aware; nothing is trained yet."""
        config = self.config_with(changes)
        trainer_class = mask_aware_trainer(get_trainer(config["MODEL_TYPE"], config["model"]))
        trainer: MaskAwareTrainer = trainer_class(config, model, session)
        return trainer

    def padding_rule(self, model: torch.nn.Module) -> padding.PaddingRule:
        """Which rows of the model's tables are RecBole's [PAD] rows."""
        return padding.padding_rule(model, self.train_data._dataset)

    def find_scope(self, leave_out_untrained: bool = True) -> Scope:
        """What may be pruned, found on a newly built model.

        Args:
            leave_out_untrained: also leave out what receives no gradient from any loss of the model.

        Raises:
            NothingToPrune: there is no target.
            ConfigError: a setting does not fit the model.
            RecBoleError: RecBole cannot build the model or score with it.
        """
        model = self.scored_model()
        settings = self.config.settings
        scope = find_scope(
            model,
            scope=settings.prune_scope,
            include=settings.prune_include,
            exclude=settings.prune_exclude,
            padding=self.padding_rule(model),
        )
        for part in self.parts():
            part.attach(model)
        if leave_out_untrained and scope.targets:
            scope = scope.without(self._untrained(model, [target.name for target in scope]), UNTRAINED)
        return scope.require_targets(self.config["model"])

    def _untrained(self, model: MaskAware, names: list[str]) -> list[str]:
        """Those of ``names`` that no loss of a batch sends a gradient to; none where a loss needs more than a batch."""
        received = model.watch_gradients(names)
        model.train()
        try:
            batch = first_batch(self.train_data, model).to(self.config["device"])
            for _ in range(_MOST_PASSES):
                for loss in batch_losses(model, batch):
                    loss.backward()
                if len(received) == len(names):
                    break
        except Exception as error:  # some losses take what only their own trainer prepares
            getLogger().debug("cause", exc_info=True)
            getLogger().info(f"cannot tell before training which targets are trained: {type(error).__name__}: {error}")
            return []
        return [name for name in names if name not in received]


def _split_copy(dataset: Dataset) -> Dataset:
    """The dataset with its rows in the order that splitting gives them; it stays as it is, as do the random streams."""
    copied = copy.copy(dataset)
    with random_streams.preserved_random_streams():
        copied.build()
    return copied
