"""Pruned means exactly 0.0: after every step of every optimizer, in every evaluation, in every checkpoint."""

from __future__ import annotations

import copy
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from recbole.data.interaction import Interaction
from recbole.model.general_recommender.bpr import BPR
from recbole.trainer import trainer as recbole_trainer
from torch import nn
from training_bench import Bench, MemoryFiles, leaks

from recbole_prune.errors import ConfigError, TrainingError
from recbole_prune.masking.masks import MaskSet
from recbole_prune.masking.scope import Scope, Target
from recbole_prune.training.l2 import BatchL2, batch_l2
from recbole_prune.training.learning_rate import LearningRate, learning_rate_factor
from recbole_prune.training.model import mask_aware
from recbole_prune.training.session import Session, Watcher
from recbole_prune.training.trainer import mask_aware_trainer

LEARNERS = {"adam": 0.01, "adamw": 0.01, "sgd": 0.5, "adagrad": 0.05, "rmsprop": 0.01}


pytestmark = pytest.mark.usefixtures("no_tensorboard")


@pytest.fixture(scope="module")
def bpr(tiny_data: Path) -> Bench:
    return Bench("BPR", tiny_data, epochs=2)


def with_settings(bench: Bench, **settings: Any) -> Bench:
    """The same data under other settings."""
    other = copy.copy(bench)
    other.config = copy.copy(bench.config)
    other.config.final_config_dict = {**bench.config.final_config_dict, **settings}
    return other


def watch_steps(trainer: Any, optimizer_name: str, masks: MaskSet) -> list[int]:
    """The leaks after each step of an optimizer, as the epoch loop sees them."""
    optimizer, seen = getattr(trainer, optimizer_name), []
    step = optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        seen.append(leaks(trainer.model, masks))
        return result

    optimizer.step = watched
    return seen


# ---- toy models


class Toy(nn.Module):
    """One table, used as a matrix or looked up with sparse gradients."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=sparse)


class ToyTrainer:
    """The parts of RecBole's trainer that the mask-aware one builds on."""

    def __init__(self, config: Any, model: Any) -> None:
        self.config, self.model = config, model
        self.optimizer = self._build_optimizer()

    def _build_optimizer(self, **_: Any) -> torch.optim.Optimizer:
        return self.config["learner"](self.model.parameters(), lr=self.config["learning_rate"])


def toy_trainer(model: Any, learner: Any, rate: float = 1e-3) -> Any:
    session: Any = Session("a toy", [], fused=False)
    return mask_aware_trainer(ToyTrainer)({"learner": learner, "learning_rate": rate}, model, session)


def toy_masks(row: int, column: int) -> MaskSet:
    """One pruned entry."""
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[row, column] = False
    return MaskSet(Scope((Target("table.weight", "embedding", (5, 3)),)), {"table.weight": mask})


def test_masked_gradients_alone_do_not_hold_an_adam_weight() -> None:
    """The oracle of the specification, trap 1: momentum moves a weight whose gradient has become 0."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    for step in range(300):
        if step == 100:
            with torch.no_grad():
                weight.zero_()
        weight.grad = torch.full((1,), float(step < 100))
        optimizer.step()
    assert weight.item() == pytest.approx(-0.009456, abs=5e-7)

    model: Any = mask_aware(Toy)()
    trainer = toy_trainer(model, torch.optim.Adam)
    masks = toy_masks(2, 1)
    for step in range(300):
        if step == 100:
            model.set_masks(masks)
            at_pruning = model.table.weight.detach().clone()
        trainer.optimizer.zero_grad()
        model.table.weight.sum().backward()
        trainer.optimizer.step()
        if step >= 100:
            assert model.table.weight[2, 1].item() == 0.0
    assert torch.equal(model.table.weight != at_pruning, masks["table.weight"])


@pytest.mark.parametrize("learner", [torch.optim.SparseAdam, torch.optim.SGD])
def test_sparse_gradients_are_masked_and_stay_sparse(learner: Any) -> None:
    model: Any = mask_aware(Toy)(sparse=True)
    plain = copy.deepcopy(model)
    masks = toy_masks(2, 1)
    live = masks["table.weight"]
    model.set_masks(masks)
    trainer, plain_optimizer = toy_trainer(model, learner, rate=0.1), learner(plain.parameters(), lr=0.1)
    rows = torch.tensor([2, 4, 2])
    for _ in range(5):
        for module in (model, plain):
            module.zero_grad()
            module.table(rows).sin().sum().backward()
        gradient, expected = model.table.weight.grad, plain.table.weight.grad
        assert gradient.is_sparse and set(gradient.coalesce().indices()[0].tolist()) == {2, 4}
        torch.testing.assert_close(gradient.to_dense(), expected.to_dense().masked_fill(~live, 0.0))
        trainer.optimizer.step()
        plain_optimizer.step()
        assert model.table.weight[2, 1].item() == 0.0
    torch.testing.assert_close(model.table.weight, plain.table.weight.masked_fill(~live, 0.0))


# ---- the model


def test_the_subclass_is_what_recbole_would_have_used(bpr: Bench) -> None:
    aware, plain = bpr.model(), bpr.plain_model()
    assert isinstance(aware, BPR) and type(aware).__name__ == "BPR" and mask_aware(BPR) is mask_aware(BPR)
    assert list(aware.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in aware.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert not list(aware.buffers())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, aware.state_dict()[name])


def test_masked_initial_weights_are_the_mask_times_the_initial_weights(bpr: Bench) -> None:
    masks = bpr.masks()
    aware, plain = bpr.model(masks), bpr.plain_model()
    for name, parameter in aware.named_parameters():
        assert torch.equal(parameter, dict(plain.named_parameters())[name] * masks[name])


def test_gradients_of_pruned_entries_are_zero_and_others_untouched(bpr: Bench) -> None:
    masks = bpr.masks()
    aware, plain = bpr.model(masks), bpr.plain_model()
    plain.load_state_dict(aware.state_dict())
    batch = next(iter(bpr.train))
    for model in (aware, plain):
        model.calculate_loss(batch).backward()
    reference = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert any(bool((reference[name][~mask] != 0).any()) for name, mask in masks.items())
    for name, parameter in aware.named_parameters():
        assert torch.equal(parameter.grad, reference[name] * masks[name])


def test_other_masks_replace_the_old_ones(bpr: Bench) -> None:
    masks, others = bpr.masks(0.5), bpr.masks(0.9)
    model = bpr.model(masks)
    model.set_masks(others)
    model.calculate_loss(next(iter(bpr.train))).backward()
    revived = others["item_embedding.weight"] & ~masks["item_embedding.weight"]
    assert bool((model.item_embedding.weight.grad[revived] != 0).any())
    model.set_masks(None)
    assert not model.item_embedding.weight._backward_hooks


def test_masks_are_worn_again_after_modules_were_replaced(bpr: Bench) -> None:
    """RecBole's load_other_parameter puts unpickled modules in the place of the model's."""

    class Replacing(BPR):
        other_parameter_name = ["item_embedding"]

    masks = bpr.masks()
    model = mask_aware(Replacing)(bpr.config, bpr.train._dataset)
    dense = copy.deepcopy(model.item_embedding)
    model.set_masks(masks)
    old = model.item_embedding.weight
    model.load_other_parameter({"item_embedding": dense})
    assert model.item_embedding.weight is dense.weight and leaks(model, masks) == 0
    assert not old._backward_hooks
    model.calculate_loss(next(iter(bpr.train))).backward()
    for name, parameter in model.named_parameters():
        assert bool((parameter.grad[~masks[name]] == 0).all())
    model.load_other_parameter(None)
    assert leaks(model, masks) == 0


def test_what_checkpoints_hold_beside_weights_goes_to_the_device_of_the_model(bpr: Bench) -> None:
    """LightGCN holds tables, RippleNet lists of tensors, DIN a layer that knows its device and the items' features."""
    layer = nn.Sequential(nn.Embedding(3, 2))
    layer[0].device, layer[0].item_feat = torch.device("cpu"), Interaction({"item_id": torch.arange(3)})
    held = {
        "restore_user_e": torch.ones(3, 2),
        "ripple_set": [(torch.ones(2), None)],
        "layer": layer,
        "sizes": {"a": 1},
    }
    model = bpr.model(bpr.masks()).to("meta")
    model.load_other_parameter(held)
    assert model.restore_user_e.device.type == model.ripple_set[0][0].device.type == "meta"
    assert model.ripple_set[0][1] is None and model.sizes == {"a": 1}
    assert model.layer is layer and layer[0].weight.device.type == layer[0].device.type == "meta"
    assert layer[0].item_feat["item_id"].device.type == "meta"


def test_stale_propagated_tables_are_dropped_and_saved_ones_kept(tiny_data: Path) -> None:
    bench = Bench("LightGCN", tiny_data)
    model = bench.model().eval()
    users = next(iter(bench.test))[0]
    with torch.no_grad():
        dense_scores = model.full_sort_predict(users).clone()
        saved = copy.deepcopy(model.other_parameter())
        assert saved["restore_user_e"] is not None
        masks = bench.masks()
        model.set_masks(masks)
        assert model.restore_user_e is None
        masked_scores = model.full_sort_predict(users).clone()
        assert not torch.equal(masked_scores, dense_scores)
        plain = bench.plain_model().eval()
        plain.load_state_dict(model.state_dict())
        # the products run in another order here (sparse/propagation.py)
        torch.testing.assert_close(plain.full_sort_predict(users), masked_scores)
        model.load_other_parameter(saved)
        assert torch.equal(model.restore_user_e, saved["restore_user_e"])


def test_only_tensors_that_receive_a_gradient_are_reported(bpr: Bench) -> None:
    model = bpr.model()
    received = model.watch_gradients(["user_embedding.weight", "item_embedding.weight"])
    assert received == set()
    model.user_embedding(torch.tensor([1])).sum().backward()
    assert received == {"user_embedding.weight"}


def test_l2_term_is_the_one_of_the_official_code(bpr: Bench) -> None:
    batch = next(iter(bpr.train))
    model, plain = bpr.model(), bpr.plain_model()
    rows = [plain.user_embedding(batch["user_id"])]
    rows += [plain.item_embedding(batch[name]) for name in ("item_id", "neg_item_id")]
    expected = sum(float((row.detach() ** 2).sum()) for row in rows) / (2 * len(batch))
    assert float(batch_l2(model, batch)) == pytest.approx(expected, rel=1e-5)
    bpr.trainer(model, parts=(BatchL2(0.3),))
    assert float(model.calculate_loss(batch)) == pytest.approx(
        float(plain.calculate_loss(batch)) + 0.3 * expected, rel=1e-5
    )


def test_l2_term_needs_a_user_and_an_item_table(tiny_data: Path) -> None:
    bench = Bench("NeuMF", tiny_data)
    model = bench.model()
    with pytest.raises(ConfigError, match=r"prune_l2_weight=0\.3 .*NeuMF has no user_embedding"):
        BatchL2(0.3).attach(model)


# ---- the trainer


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("learner", LEARNERS)
def test_pruned_entries_are_zero_after_every_step(bpr: Bench, learner: str, weight_decay: float) -> None:
    bench = with_settings(bpr, learner=learner, learning_rate=LEARNERS[learner], weight_decay=weight_decay)
    masks = bench.masks()
    model = bench.model(masks)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = bench.trainer(model)
    seen = watch_steps(trainer, "optimizer", masks)
    bench.fit(trainer)
    assert len(seen) == 2 * len(bench.train) and not any(seen)
    for name, parameter in model.named_parameters():
        changed = (parameter != before[name]) & masks[name]
        assert int(changed[1:].sum()) > 0.9 * int(masks[name][1:].sum()), name
    checkpoint = torch.load(BytesIO(trainer.files.checkpoint), weights_only=False)
    for name, mask in masks.items():
        assert bool((checkpoint["state_dict"][name][~mask] == 0).all())


@pytest.mark.parametrize("masked", [False, True])
def test_clipping_sees_the_gradients_of_live_entries_only(
    bpr: Bench, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    """Trap 2: gradients of pruned entries must not enter the norm that scales the live ones."""
    bench = with_settings(bpr, clip_grad_norm={"max_norm": 0.001, "norm_type": 2}, learner="sgd", learning_rate=1.0)
    masks = bench.masks(0.2) if masked else MaskSet.dense(bench.scope())
    trainer = bench.trainer(bench.model(masks))
    plain = bench.plain_model()
    expected, unmasked, norms = [], [], []
    calculate_loss, clip = trainer.model.calculate_loss, recbole_trainer.clip_grad_norm_

    def reference(batch: Any) -> Any:
        """Gradients of a plain model at the same weights, masked by hand."""
        plain.load_state_dict(trainer.model.state_dict())
        plain.zero_grad()
        plain.calculate_loss(batch).backward()
        gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
        live = torch.cat([gradients[name][mask] for name, mask in masks.items()])
        expected.append(float(live.norm()))
        unmasked.append(float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()))
        return calculate_loss(batch)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        norms.append(float(clip(*args, **kwargs)))
        return norms[-1]

    trainer.model.calculate_loss = reference
    monkeypatch.setattr(recbole_trainer, "clip_grad_norm_", recorded)
    bench.fit(trainer)
    assert len(norms) == 2 * len(bench.train)
    assert norms == pytest.approx(expected, rel=1e-5)
    assert all(norm > 0.001 for norm in norms)  # the clipping did something
    if masked:
        assert all(all_of_it > 1.2 * live for live, all_of_it in zip(expected, unmasked))


def test_mixed_precision_keeps_pruned_entries_zero(bpr: Bench) -> None:
    bench = with_settings(bpr, enable_amp=True, weight_decay=0.01)
    masks = bench.masks()
    trainer = bench.trainer(bench.model(masks))
    dtypes = set()
    one = torch.ones(1, 1)
    trainer.model.user_embedding.register_forward_hook(lambda *_: dtypes.add((one @ one).dtype))
    seen = watch_steps(trainer, "optimizer", masks)
    bench.fit(trainer)
    assert dtypes == {torch.bfloat16, torch.float32}  # on in training, off in evaluation
    assert seen and not any(seen)


def test_both_optimizers_of_recvae_keep_pruned_entries_zero(tiny_data: Path) -> None:
    bench = Bench("RecVAE", tiny_data, weight_decay=0.01)
    masks = bench.masks()
    assert any(t.name.startswith("encoder") for t in masks.scope) and "decoder.weight" in masks
    trainer = bench.trainer(bench.model(masks))
    seen = {name: watch_steps(trainer, name, masks) for name in ("optimizer_encoder", "optimizer_decoder")}
    bench.fit(trainer)
    batches = len(bench.train)
    assert len(seen["optimizer_encoder"]) == batches * bench.config["n_enc_epochs"]
    assert len(seen["optimizer_decoder"]) == batches * bench.config["n_dec_epochs"]
    assert not any(seen["optimizer_encoder"]) and not any(seen["optimizer_decoder"])


def test_evaluation_sees_zeros_whatever_was_loaded(bpr: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = bpr.masks()
    trainer = bpr.trainer(bpr.model(masks))
    seen = []
    evaluate = recbole_trainer.Trainer.evaluate

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(leaks(self.model, masks))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(recbole_trainer.Trainer, "evaluate", watched)
    trainer.model.load_state_dict(bpr.plain_model().state_dict())
    assert leaks(trainer.model, masks) > 0
    trainer.evaluate(bpr.valid, load_best_model=False)
    trainer.model.load_state_dict(bpr.plain_model().state_dict())
    trainer._save_checkpoint(0)
    trainer.evaluate(bpr.test, load_best_model=True)
    assert seen == [0, 0]


def test_checkpoints_load_in_plain_recbole(tiny_data: Path) -> None:
    bench = Bench("LightGCN", tiny_data, epochs=2)
    masks = bench.masks()
    trainer = bench.trainer(bench.model(masks))
    bench.fit(trainer)
    data = trainer.files.checkpoint
    assert b"recbole_prune" not in data  # nothing of ours is needed to read it
    checkpoint = torch.load(BytesIO(data), weights_only=False)
    plain = bench.plain_model()
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    plain.load_other_parameter(checkpoint["other_parameter"])
    assert leaks(plain, masks) == 0
    trainer.load_best()
    users = next(iter(bench.test))[0]
    with torch.no_grad():
        assert torch.equal(plain.eval().full_sort_predict(users), trainer.model.eval().full_sort_predict(users))


def test_evaluating_another_checkpoint_is_refused(bpr: Bench) -> None:
    """The arguments are RecBole's, in its order; a file that RecBole would not read either is passed over."""
    trainer = bpr.trainer(bpr.model(bpr.masks()))
    bpr.fit(trainer)
    expected = trainer.evaluate(bpr.test, True, None, False)
    for arguments in ((True, "other.pth"), (True, "other.pth", False)):
        with pytest.raises(ConfigError, match=r"model_file=other\.pth .*ticket 1"):
            trainer.evaluate(bpr.test, *arguments)
    assert trainer.evaluate(bpr.test, False, "other.pth", False) == expected


@pytest.mark.parametrize("storage", slow_but(["compact"], ["compact", "masked"]))
@pytest.mark.parametrize("learner", LEARNERS)
def test_plain_recbole_resumes_the_checkpoint_of_a_ticket(
    bpr: Bench, storage: str, learner: str, tmp_path: Path
) -> None:
    """Moments of live entries in a fused optimizer of the dense table would make it write beyond them."""
    bench = with_settings(bpr, learner=learner, weight_decay=0.01)
    masks = bench.masks()
    trainer = bench.trainer(bench.model(masks, storage), keep_moments=True)
    bench.fit(trainer)
    (tmp_path / "ticket-001.pth").write_bytes(trainer.files.checkpoint)
    plain = recbole_trainer.Trainer(bench.config, bench.plain_model())
    own = [{k: v for k, v in group.items() if k != "params"} for group in plain.optimizer.param_groups]
    plain.resume_checkpoint(tmp_path / "ticket-001.pth")
    assert [{k: v for k, v in group.items() if k != "params"} for group in plain.optimizer.param_groups] == own
    for name, parameter in plain.model.named_parameters():
        for moment in plain.optimizer.state[parameter].values():
            if isinstance(moment, torch.Tensor) and moment.dim():
                assert moment.shape == parameter.shape and not moment[~masks[name]].any()
    assert math.isfinite(plain._train_epoch(bench.train, plain.start_epoch))


@pytest.mark.parametrize("storage", slow_but(["compact"], ["compact", "masked"]))
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_checkpoint_without_moments_starts_a_plain_optimizer(
    bpr: Bench, storage: str, learner: str, tmp_path: Path
) -> None:
    """As a new optimizer would, but for Adagrad, which fails without the sums that it makes when it is built."""
    bench = with_settings(bpr, learner=learner, weight_decay=0.01)
    trainer = bench.trainer(bench.model(bench.masks(), storage))
    bench.fit(trainer)
    (tmp_path / "ticket-001.pth").write_bytes(trainer.files.checkpoint)
    checkpoint = torch.load(BytesIO(trainer.files.checkpoint), weights_only=False)
    assert bool(checkpoint["optimizer"]["state"]) == (learner == "adagrad")

    resumed = recbole_trainer.Trainer(bench.config, bench.plain_model())
    resumed.resume_checkpoint(tmp_path / "ticket-001.pth")
    renewed = recbole_trainer.Trainer(bench.config, bench.plain_model())
    renewed.model.load_state_dict(checkpoint["state_dict"])
    renewed.start_epoch = resumed.start_epoch
    losses = []
    for plain in (resumed, renewed):
        bench.plain.reseed()
        losses.append(plain._train_epoch(bench.train, plain.start_epoch))
    assert math.isfinite(losses[0]) and (losses[0] == losses[1] or learner == "adagrad")


@pytest.mark.parametrize("learner", LEARNERS)
def test_saved_moments_of_storages_are_equal_and_the_optimizer_stays(bpr: Bench, learner: str) -> None:
    bench = with_settings(bpr, epochs=1, learner=learner, learning_rate=LEARNERS[learner])
    masks, saved = bench.masks(), {}
    for storage in ("compact", "masked"):
        trainer = bench.trainer(bench.model(masks, storage), keep_moments=True)
        bench.fit(trainer)
        live = trainer.optimizer.state_dict()
        saved[storage] = torch.load(BytesIO(trainer.files.checkpoint), weights_only=False)["optimizer"]
        assert all(group.get("fused") in (None, False) for group in saved[storage]["param_groups"])
        for number, parameter in enumerate(trainer.model.parameters()):
            for value in live["state"].get(number, {}).values():
                assert not (isinstance(value, torch.Tensor) and value.dim()) or value.shape == parameter.shape
    assert saved["compact"]["param_groups"] == saved["masked"]["param_groups"]
    assert saved["compact"]["state"].keys() == saved["masked"]["state"].keys()
    for number, moments in saved["masked"]["state"].items():
        for name, moment in moments.items():
            torch.testing.assert_close(saved["compact"]["state"][number][name], moment, msg=name)


def test_dense_masks_train_like_plain_recbole(bpr: Bench, tmp_path: Path) -> None:
    bench = with_settings(bpr, checkpoint_dir=str(tmp_path))
    plain = recbole_trainer.Trainer(bench.config, bench.plain_model())
    best = plain.fit(bench.train, bench.valid, saved=True, show_progress=False, verbose=False)
    trainer = bench.trainer(bench.model(MaskSet.dense(bench.scope())))
    assert bench.fit(trainer) == best
    for name, value in plain.model.state_dict().items():  # fused Adam rounds differently
        torch.testing.assert_close(value, trainer.model.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_best_epoch_history_and_checkpoint_belong_together(bpr: Bench) -> None:
    bench = with_settings(bpr, epochs=6, eval_step=2, learning_rate=0.05)
    files = MemoryFiles()
    reports = []

    class Reports(Watcher):
        def epoch_begins(self, trainer: Any) -> None:
            reports.append(("epoch", trainer.epoch, trainer.epochs_done))

        def batch_done(self) -> None:
            reports.append("batch")

        def evaluation_begins(self, what: str) -> None:
            reports.append(what)

        def validated(self, trainer: Any) -> None:
            reports.append(trainer.history[-1])

    trainer = bench.trainer(bench.model(bench.masks()), files, watcher=Reports())
    score, result = bench.fit(trainer)
    assert [epoch for epoch, _ in trainer.history] == [2, 4, 6] and trainer.epochs_done == 6
    assert (trainer.best_epoch, score) in trainer.history and score == max(s for _, s in trainer.history)
    assert torch.load(BytesIO(files.checkpoint), weights_only=False)["epoch"] == trainer.best_epoch - 1
    trainer.load_best()
    assert trainer.evaluate(bench.valid, load_best_model=False) == result
    batches = ["batch"] * len(bench.train)
    expected = []
    for epoch in range(6):
        expected += [("epoch", epoch, epoch), *batches]
        expected += ["validation", trainer.history[epoch // 2]] if epoch % 2 else []
    assert reports == expected
    assert trainer.train_seconds > 0 and trainer.eval_seconds > 0


def test_a_loss_that_becomes_nan_names_ticket_epoch_and_remedy(bpr: Bench) -> None:
    bench = with_settings(bpr, epochs=3)
    trainer = bench.trainer(bench.model())
    trainer.session.name = "ticket 4"
    calculate_loss = trainer.model.calculate_loss
    trainer.model.calculate_loss = lambda batch: calculate_loss(batch) * (math.nan if trainer.epoch == 2 else 1)
    with pytest.raises(TrainingError, match=r"ticket 4 became NaN in epoch 2: lower learning_rate=0\.001"):
        bench.fit(trainer)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("fixed", [False, True])
def test_learning_rate_follows_its_schedule(bpr: Bench, schedule: str, fixed: bool) -> None:
    bench = with_settings(bpr, epochs=5, learning_rate=0.02)
    rates: list[float] = []

    class Rates(Watcher):
        def epoch_begins(self, trainer: Any) -> None:
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer = bench.trainer(
        bench.model(),
        watcher=Rates(),
        learning_rate=LearningRate(schedule, warmup=2, at_end=fixed),
    )
    bench.fit(trainer)
    epochs = [4] * 5 if fixed else range(5)
    expected = [0.02 * learning_rate_factor(schedule, epoch, 5, 2) for epoch in epochs]
    assert rates == pytest.approx(expected)
