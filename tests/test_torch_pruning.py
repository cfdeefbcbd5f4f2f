"""The unit groups beside those that Torch-Pruning finds by tracing, where it can: layers, convolutions, plain tables.

It does not know the heads of RecBole's attention, fields or sequences that are flattened, halves of a layer (mean and
variance), nor GRUs; those are held by tests/test_units.py alone, as all groups are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import nn
from training_bench import Bench
from zoo import missing_package

from recbole_prune.anatomy.units.groups import UnitGroup
from recbole_prune.anatomy.units.table import anatomy_of

tracer = pytest.importorskip("torch_pruning", reason="the package torch-pruning is missing (torch 2, Python 3.10)")

# positions along axes of tensors, by name and axis
Places = dict[tuple[str, int], set[int]]
# of each model the kinds of which it traces every group
TRACED = {
    **dict.fromkeys(
        ("AutoInt", "Caser", "DeepFM", "DSSM", "FNN", "NFM", "NNCF", "PNN", "WideDeep", "xDeepFM"), "neuron"
    ),
    **dict.fromkeys(("BERT4Rec", "CORE", "LightSANs", "S3Rec", "SASRec", "SASRecF", "MultiVAE"), "neuron"),
    "BPR": "embedding",
    "CDAE": "embedding",
    "ConvNCF": "channel",
    "DMF": "embedding neuron",
    "MultiDAE": "latent neuron",
    "NeuMF": "embedding neuron",
}


def scores(model: Any, batch: Interaction) -> torch.Tensor:
    """What is traced."""
    name = type(model).__name__
    if name == "CDAE":
        found: torch.Tensor = model.forward(model.get_rating_matrix(batch[model.USER_ID]), batch[model.USER_ID])
        return found
    return model.full_sort_predict(batch) if name in ("MultiDAE", "MultiVAE") else model.predict(batch)


def places_of(group: UnitGroup, model: nn.Module, unit: int) -> Places:
    """What our table says goes with a unit."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: Places = {}
    for place in group.places:
        owners = place.owners(tensors[place.tensor].shape[place.axis], group.count)
        found.setdefault((place.tensor, place.axis), set()).update((owners == unit).nonzero().flatten().tolist())
    return found


def traced_with(graph: Any, model: nn.Module, layer: nn.Module, prune: Callable[..., Any], index: int) -> Places:
    """What Torch-Pruning says goes with an output of a layer."""
    names = {module: name for name, module in model.named_modules()}
    found: Places = {}

    def add(tensor: str, axis: int, indices: list[int]) -> None:
        found.setdefault((tensor, axis), set()).update(indices)

    for dependency, indices in graph.get_pruning_group(layer, prune, idxs=[index]):
        module = dependency.target.module
        if module not in names:  # an operation without weights
            assert not isinstance(module, nn.Parameter)
            continue
        name, outgoing = names[module], graph.is_out_channel_pruning_fn(dependency.handler)
        if isinstance(module, nn.Embedding):
            add(f"{name}.weight", 1, indices)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                add(f"{name}.{tensor}", 0, indices)
        else:
            assert isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)), module
            add(f"{name}.weight", 0 if outgoing else 1, indices)
            if outgoing and module.bias is not None:
                add(f"{name}.bias", 0, indices)
    return found


def source_of(group: UnitGroup, model: nn.Module) -> tuple[str, int, Callable[..., Any]]:
    """A tensor whose outputs the units are, its axis, and what prunes them there."""
    modules = dict(model.named_modules())
    pruners = {
        nn.Linear: (0, tracer.prune_linear_out_channels),
        nn.Conv1d: (0, tracer.prune_conv_out_channels),
        nn.Conv2d: (0, tracer.prune_conv_out_channels),
        nn.Embedding: (1, tracer.prune_embedding_out_channels),
    }
    for place in group.places:
        layer, _, part = place.tensor.rpartition(".")
        axis, prune = pruners.get(type(modules[layer]), (None, None))
        if part == "weight" and place.axis == axis:
            return layer, axis, prune
    raise AssertionError(f"{group.name} has no layer that the units come from")


@pytest.mark.parametrize("name", sorted(TRACED))
def test_the_same_groups(name: str, tiny_data: Path) -> None:
    if missing_package(name):
        pytest.skip(missing_package(name))
    bench = Bench(name, tiny_data, train_batch_size=64)
    model, batch = bench.plain_model().eval(), next(iter(bench.train))
    if name in ("CDAE", "MultiDAE", "MultiVAE"):
        batch = Interaction({model.USER_ID: batch[model.USER_ID].unique()})
    graph = tracer.DependencyGraph()
    graph.build_dependency(model, example_inputs=batch, forward_fn=scores, verbose=False)
    kinds = TRACED[name].split()
    groups = [group for group in anatomy_of(model) if group.kind in kinds and not group.inexact]
    assert {group.kind for group in groups} == set(kinds)
    for group in groups:
        layer, axis, prune = source_of(group, model)
        for unit in {0, 1, group.count - 1}:
            mine = places_of(group, model, unit)
            [index] = mine[f"{layer}.weight", axis]
            assert traced_with(graph, model, model.get_submodule(layer), prune, index) == mine, (group.name, unit)
