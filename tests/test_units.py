"""Removable units: every model of RecBole, each of its groups shrunk beside the same weights at 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from recbole.utils import KGDataLoaderState
from test_vectors import STREAMS, widened
from training_bench import Bench, scores
from zoo import all_models, gradient_models, kind_of, missing_package

from recbole_prune.anatomy.caches import refresh
from recbole_prune.anatomy.losses import batch_losses
from recbole_prune.anatomy.units.groups import UNIT_KINDS, Along, Anatomy, UnitGroup
from recbole_prune.anatomy.units.table import UNITS, WITHOUT, anatomy_of
from recbole_prune.data.random_streams import set_random_state
from recbole_prune.sparse.shrinking import Shrunk
from recbole_prune.training.state import weights_of

QUICK = ["BPR", "NeuMF", "SASRec", "GRU4Rec", "DeepFM", "MultiVAE"]
KNOWN = [name for name in gradient_models() if name in UNITS]
# settings that give a class parts which it lacks by default
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("LINE", {"order": 1}),
    ("NAIS", {"algorithm": "concat"}),
    ("NeuMF", {"mf_train": False}),
    ("SimpleX", {"aggregator": "user_attention"}),
    ("SimpleX", {"aggregator": "self_attention"}),
    ("GCMC", {"accum": "sum", "sparse_feature": False}),
    ("LDiffRec", {"in_dims": [8, 12], "out_dims": [12], "dims_dnn": [16, 12]}),
    ("KGCN", {"aggregator": "concat", "n_iter": 2}),
    ("KGAT", {"aggregator_type": "graphsage", "layers": [12, 8], "kg_embedding_size": 12}),
    ("KGAT", {"aggregator_type": "gcn", "layers": [12, 8]}),
    ("CKE", {"kg_embedding_size": 12}),
    ("MKR", {"low_layers_num": 2, "high_layers_num": 2, "use_inner_product": False}),
    ("MKR", {"low_layers_num": 2, "high_layers_num": 2}),
    ("RaCT", {"mlp_hidden_size": [16, 12]}),
    ("GRU4Rec", {"num_layers": 2}),
    ("NARM", {"n_layers": 2}),
    ("GRU4RecCPR", {"use_out_emb": True, "weight_mode": "dynamic"}),
    ("CORE", {"dnn_type": "ave"}),
    ("DIEN", {"gru_type": "GRU"}),
    ("PNN", {"use_outer": True}),
    ("DCNV2", {"mixed": True, "structure": "parallel"}),
    ("xDeepFM", {"direct": True}),
    ("AutoInt", {"has_residual": True}),
    ("FiGNN", {"n_layers": 3}),
    ("EulerNet", {"order_list": [6, 4]}),
    ("EulerNet", {"order_list": [6, 4], "apply_norm": True}),
]
# the cross layers take powers of their inputs, with which rounding grows
IN_DOUBLE = ["DCNV2"]
# scores differ by rounding alone
TOLERANCE = 1e-5


def half(group: UnitGroup) -> torch.Tensor:
    """Half of the units of a group, spread over it; as many from every chunk."""
    size = group.count // group.chunks
    order = torch.randperm(size, generator=torch.Generator().manual_seed(group.count))
    some = order[: max(1, size // 2)].sort().values
    return torch.cat([some + chunk * size for chunk in range(group.chunks)])


def alike(anatomy: Anatomy, group: UnitGroup) -> list[UnitGroup]:
    """The groups that lose as many units as a group, with it."""
    return [other for other in anatomy if other.name == group.name or (group.alike and other.alike == group.alike)]


def kept_with(anatomy: Anatomy, group: UnitGroup) -> dict[str, torch.Tensor]:
    """Half of a group, and of the groups that are alike."""
    return {each.name: half(each) for each in alike(anatomy, group)}


def zeroed(model: Any, anatomy: Anatomy, kept: dict[str, torch.Tensor]) -> None:
    """Set every slice of the units that go to 0."""
    tensors = weights_of(model)
    with torch.no_grad():
        for name, axes in anatomy.positions(kept, model).items():
            for axis, stays in axes.items():
                gone = torch.ones(tensors[name].shape[axis], dtype=torch.bool)
                gone[stays] = False
                tensors[name].index_fill_(axis, gone.nonzero()[:, 0], 0)


def scores_of(model: Any, bench: Bench) -> torch.Tensor:
    """Scores of all items, or of pairs, with the same random streams each time."""
    refresh(model)
    set_random_state(STREAMS)
    return scores(model.eval(), bench.test, bench.train._dataset)


def shrunk_model(bench: Bench, anatomy: Anatomy, model: Any, kept: dict[str, torch.Tensor]) -> Shrunk:
    return Shrunk(model, anatomy.positions(kept, model), anatomy.sizes(kept), anatomy.scales(kept))


@pytest.mark.parametrize("name", slow_but(QUICK, KNOWN))
def test_without_units_a_model_scores_as_with_their_weights_at_zero(name: str, tiny_data: Path) -> None:
    """Each group alone, then all exact ones together, which also trains and comes back as it was."""
    missing = missing_package(name)
    if missing:
        pytest.skip(f"{name}: {missing}")
    holds_for_every_group(Bench(name, tiny_data))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [case for case in VARIANTS if case[0] in KNOWN])
def test_the_parts_that_settings_add_have_units_too(name: str, settings: dict[str, Any], tiny_data: Path) -> None:
    holds_for_every_group(Bench(name, tiny_data, **settings))


def holds_for_every_group(bench: Bench) -> None:
    """Each group alone, all exact ones together, and the plain class with the settings of the shrunk model."""
    anatomy = anatomy_of(bench.plain_model())
    assert len({group.name for group in anatomy}) == len(anatomy.groups)
    for group in anatomy:
        assert group.kind in UNIT_KINDS
        assert all((other.kind, other.chunks) == (group.kind, group.chunks) for other in alike(anatomy, group))
        if group.inexact:
            can_be_masked(bench, kept_with(anatomy, group))
        else:
            compare(bench, kept_with(anatomy, group), constant=group.constant)
    exact = [group for group in anatomy if not group.inexact]
    if exact:
        kept = {group.name: half(group) for group in exact}
        compare(bench, kept, constant=any(group.constant for group in exact), trained=True)
        loadable = expressible(anatomy, kept)
        if loadable is not None:
            loads_in_the_plain_class(bench, loadable)


def can_be_masked(bench: Bench, kept: dict[str, torch.Tensor]) -> None:
    """The model scores with units at 0."""
    model = built(bench)
    zeroed(model, anatomy_of(model), kept)
    assert scores_of(model, bench).isfinite().any()


def compare(bench: Bench, kept: dict[str, torch.Tensor], *, constant: bool, trained: bool = False) -> None:
    """Scores with units at 0 and without them; the shrunk model trains, if asked for, and comes back as it was."""
    masked, small = built(bench), built(bench)
    anatomy = anatomy_of(masked)
    zeroed(masked, anatomy, kept)
    expected = scores_of(masked, bench)
    before = {name: tensor.clone() for name, tensor in weights_of(masked).items()}
    shrunk = shrunk_model(bench, anatomy, small, kept)
    assert any(small.get_parameter(name).numel() < before[name].numel() for name in dict(small.named_parameters()))
    found = scores_of(small, bench)
    finite = expected.isfinite()
    assert torch.equal(finite, found.isfinite())
    difference = (found - expected)[finite]
    if constant:
        difference = difference - difference.mean()
    assert difference.abs().max() <= TOLERANCE * expected[finite].abs().max(), (list(kept), difference.abs().max())
    for name, tensor in weights_of(small).items():
        torch.testing.assert_close(shrunk.expanded(name, tensor.detach()), before[name], rtol=1e-6, atol=1e-6)
    if trained:
        trains(small.float(), bench)
    shrunk.undo()
    assert {name: tensor.shape for name, tensor in weights_of(small).items()} == {n: t.shape for n, t in before.items()}
    if trained:
        scores_of(small, bench)


def built(bench: Bench) -> Any:
    """The model with larger weights, in double precision where it needs that."""
    model = widened(bench.plain_model())
    return model.double() if bench.name in IN_DOUBLE else model


def trains(model: Any, bench: Bench) -> None:
    """The losses of its trainer, with finite gradients."""
    model.train()
    if hasattr(bench.train, "set_mode"):
        bench.train.set_mode(KGDataLoaderState.RSKG)
    for loss in batch_losses(model, next(iter(bench.train))):
        loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    model.zero_grad(set_to_none=True)


def expressible(anatomy: Anatomy, kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """What of ``kept`` the class can be built with: all of it, or the units of one kind."""
    if anatomy.smaller_class is None:
        return None
    of_kinds = ({name: kept[name] for name in kept if anatomy[name].kind == kind} for kind in UNIT_KINDS)
    choices = [kept, *filter(None, of_kinds)]
    return next((each for each in choices if anatomy.smaller_class(anatomy.counts(each)) is not None), None)


def loads_in_the_plain_class(bench: Bench, kept: dict[str, torch.Tensor]) -> None:
    """RecBole's class with other settings takes the weights of the shrunk model and scores as it does."""
    small = widened(bench.plain_model())
    anatomy = anatomy_of(small)
    assert anatomy.smaller_class is not None
    settings = anatomy.smaller_class(anatomy.counts(kept))
    assert settings
    shrunk_model(bench, anatomy, small, kept)
    expected = scores_of(small, bench)
    for key, value in settings.items():
        bench.config[key] = value
    plain = bench.plain_model()
    plain.load_state_dict(small.state_dict())
    torch.testing.assert_close(scores_of(plain, bench), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["general", "knowledge", "sequential", "context", "traditional", "tree"])
def test_every_model_has_units_or_a_reason_why_not(kind: str) -> None:
    """All models of RecBole, those that train by gradient and those that do not."""
    models = [name for name in all_models() if kind_of(name) == kind]
    assert [name for name in models if (name in UNITS) == (name in WITHOUT)] == []


def test_a_model_without_units_says_why(tiny_data: Path) -> None:
    assert anatomy_of(Bench("Pop", tiny_data).plain_model()).needs == WITHOUT["Pop"]


def test_positions_of_units() -> None:
    """By hand: gates of a GRU of 3 units, a flattened channel of 2 positions, one dimension of two heads."""
    assert Along("w", repeats=3).owners(9, 3).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert Along("w", start=1, block=2).owners(8, 3).tolist() == [-1, 0, 0, 1, 1, 2, 2, -1]
    assert Along("w", repeats=2, period=3).owners(6, 2).tolist() == [0, 1, -1, 0, 1, -1]


def test_scaled_tensors_are_multiplied_by_what_stays_and_divided_on_the_way_back() -> None:
    """A mean over 4 dimensions is written as one over 2, one tensor narrowed and one as large as before."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    places = (Along("0.weight", 1),)
    anatomy = Anatomy([UnitGroup("u", "neuron", 4, places, scaled={"0.weight": float, "1.weight": lambda k: k**0.5})])
    kept = {"u": torch.tensor([1, 3])}
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    assert anatomy.scales({}) == anatomy.scales({"u": torch.arange(4)}) == {}
    shrunk = Shrunk(model, anatomy.positions(kept, model), {}, anatomy.scales(kept))
    torch.testing.assert_close(model[0].weight.detach(), before["0.weight"][:, [1, 3]] / 2)
    torch.testing.assert_close(model[1].weight.detach(), before["1.weight"] * 0.5**0.5)
    shrunk.undo()
    expected = before["0.weight"] * torch.tensor([0.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(model[0].weight.detach(), expected)
    torch.testing.assert_close(model[1].weight.detach(), before["1.weight"])
