"""What may be pruned in RecBole's models and in awkward ones, and a reason for everything else."""

from __future__ import annotations

from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed
from torch import nn
from zoo import all_models

from recbole_prune.bench.plain import PlainData
from recbole_prune.errors import ConfigError, NothingToPrune
from recbole_prune.masking.padding import PaddingRule, padding_rule
from recbole_prune.masking.scope import Scope, Target, find_scope
from recbole_prune.training.model import mask_aware

USERS, ITEMS, WIDTH = 943, 1682, 64


def settings_of(model: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"gpu_id": "", "show_progress": False}
    return {**settings, "train_neg_sample_args": None} if model in ("SASRec", "GRU4RecCPR") else settings


@cache
def dataset_of(kind: str) -> Any:
    """Bundled ml-100k as RecBole gives it to the models of a kind."""
    model = {"general": "BPR", "sequential": "SASRec", "context": "FM"}[kind]
    config = Config(model, "ml-100k", config_dict=settings_of(model))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    # sequences of every user take seconds to build, and no sequential model looks at them when it is made
    return dataset if kind == "sequential" else data_preparation(config, dataset)[0]._dataset


def build(model: str, kind: str) -> tuple[nn.Module, Any]:
    if model not in all_models():
        pytest.skip(f"this RecBole has no {model}")
    dataset = dataset_of(kind)
    return get_model(model)(Config(model, "ml-100k", config_dict=settings_of(model)), dataset), dataset


def scope_of(model: str, kind: str = "general", **arguments: Any) -> tuple[nn.Module, Scope]:
    module, dataset = build(model, kind)
    scope = find_scope(module, padding=padding_rule(module, dataset), **arguments)
    check_partition(module, scope)
    return module, scope


def check_partition(model: nn.Module, scope: Scope) -> None:
    """Every tensor is exactly once a target or an exclusion with a reason; the numbers add up."""
    tensors = {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module.named_parameters(recurse=False)
    }
    named = [target.name for target in scope] + [exclusion.name for exclusion in scope.exclusions]
    assert len(named) == len(set(named))
    assert {id(tensors[name]) for name in named} == {id(parameter) for parameter in tensors.values()}
    assert len(named) == len({id(parameter) for parameter in tensors.values()})
    for target in scope:
        parameter = tensors[target.name]
        assert tuple(parameter.shape) == target.shape and parameter.requires_grad
        assert all(tensors[other] is parameter for other in target.tied_to)
        assert target.prunable == target.rows * target.width
        assert target.countable().sum() == target.rows
        assert scope[target.name] is target
    for exclusion in scope.exclusions:
        assert exclusion.reason and exclusion.entries == tensors[exclusion.name].numel()
    assert scope.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert scope.prunable == sum(target.prunable for target in scope) <= scope.parameters
    text = scope.describe()
    assert all(name in text for name in named)


def rows_of(scope: Scope) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {target.name: (target.shape, target.padding_rows) for target in scope}


# ---- RecBole's models on ml-100k


@pytest.mark.parametrize("model", slow_but(["BPR"], ["BPR", "LightGCN"]))
def test_user_and_item_tables_without_their_padding_rows(model: str) -> None:
    _, scope = scope_of(model)
    assert rows_of(scope) == {
        "user_embedding.weight": ((USERS + 1, WIDTH), (0,)),
        "item_embedding.weight": ((ITEMS + 1, WIDTH), (0,)),
    }
    assert scope.prunable == 168_000 == (USERS + ITEMS) * WIDTH
    assert scope.parameters == (USERS + ITEMS + 2) * WIDTH
    assert scope.exclusions == ()


def test_the_mask_aware_subclass_has_the_same_scope() -> None:
    module, dataset = build("BPR", "general")
    config = Config("BPR", "ml-100k", config_dict=settings_of("BPR"))
    aware = mask_aware(type(module))(config, dataset)
    rule = padding_rule(aware, dataset)
    assert find_scope(aware, padding=rule) == find_scope(module, padding=padding_rule(module, dataset))
    assert list(aware.state_dict()) == list(module.state_dict())


def test_neumf_has_four_tables() -> None:
    _, scope = scope_of("NeuMF")
    assert [t.kind for t in scope] == ["embedding"] * 4
    assert scope.prunable == 2 * 168_000
    assert all(t.padding_rows == (0,) for t in scope)
    assert {"mlp_layers.mlp_layers.1.weight", "predict_layer.bias"} <= {e.name for e in scope.exclusions}


def test_cdae_has_a_user_table_and_leaves_its_matrices() -> None:
    _, scope = scope_of("CDAE")
    assert rows_of(scope) == {"h_user.weight": ((USERS + 1, WIDTH), (0,))}
    reasons = {e.name: e.reason for e in scope.exclusions}
    assert reasons["h_item.weight"] == "linear weight, prune_scope is embedding"
    assert reasons["out_layer.bias"] == "bias"


def test_multivae_has_no_tables_so_its_matrices_are_the_targets() -> None:
    _, scope = scope_of("MultiVAE")
    assert [(t.name, t.kind) for t in scope] == [
        ("encoder.0.weight", "linear"),
        ("encoder.2.weight", "linear"),
        ("decoder.0.weight", "linear"),
        ("decoder.2.weight", "linear"),
    ]
    assert scope.prunable == sum(prod(t.shape) for t in scope)
    assert {e.reason for e in scope.exclusions} == {"bias"}


def test_frozen_copies_and_normalisations_of_recvae_are_left() -> None:
    module, scope = scope_of("RecVAE")
    names = {t.name for t in scope}
    assert "decoder.weight" in names and "encoder.fc1.weight" in names
    assert not any(name.startswith("prior.") for name in names)
    reasons = {e.name: e.reason for e in scope.exclusions}
    assert reasons["prior.encoder_old.fc1.weight"].startswith("frozen")
    assert reasons["encoder.ln1.weight"] == "normalisation"
    assert scope.parameters < sum(parameter.numel() for parameter in module.parameters())


def test_sasrec_has_padding_in_the_item_table_only() -> None:
    _, scope = scope_of("SASRec", "sequential")
    assert rows_of(scope) == {
        "item_embedding.weight": ((ITEMS + 1, WIDTH), (0,)),
        "position_embedding.weight": ((50, WIDTH), ()),
    }
    assert scope.prunable == ITEMS * WIDTH + 50 * WIDTH


def test_tied_tables_count_once() -> None:
    module, scope = scope_of("GRU4RecCPR", "sequential")
    assert module.out_item_embedding.weight is module.item_embedding.weight
    (target,) = scope
    assert (target.name, target.tied_to) == ("item_embedding.weight", ("out_item_embedding.weight",))
    assert target.padding_rows == (0,) and scope.prunable == ITEMS * WIDTH


@pytest.mark.parametrize("model", slow_but(["FM"], ["FM", "FFM"]))
def test_stacked_fields_have_one_padding_row_each(model: str) -> None:
    module, scope = scope_of(model, "context")
    dataset = dataset_of("context")
    sizes = [dataset.num(field) for field in module.token_field_names]
    starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))
    assert len(starts) > 2 and starts[1] == USERS + 1
    stacked = [target for target in scope if target.shape[0] == sum(sizes)]
    assert len(stacked) >= 2  # of width embedding_size and of width 1
    assert all(target.padding_rows == starts for target in stacked)
    for target in scope:
        if "token_seq" in target.name:
            assert target.padding_rows == (0,)
    assert {e.name: e.reason for e in scope.exclusions} == {"first_order_linear.bias": "bias"}


def test_knowledge_graph_tables(tiny_data: Path) -> None:
    columns = {
        "inter": ["user_id", "item_id"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    }
    settings = {"data_path": str(tiny_data), "load_col": columns, "gpu_id": "", "show_progress": False}
    plain = PlainData(Config("KGAT", "tiny", config_dict=settings))
    module = plain.build_model()
    scope = find_scope(module, padding=padding_rule(module, plain.train_data._dataset))
    check_partition(module, scope)
    assert rows_of(scope) == {
        "user_embedding.weight": ((plain.dataset.num("user_id"), 64), (0,)),
        "entity_embedding.weight": ((plain.dataset.num("entity_id"), 64), (0,)),
        "relation_embedding.weight": ((plain.dataset.num("relation_id"), 64), (0,)),
        "trans_w.weight": ((plain.dataset.num("relation_id"), 64 * 64), (0,)),
    }


# ---- prune_scope, prune_include, prune_exclude


def test_prune_scope_linear_and_all() -> None:
    _, linear = scope_of("NeuMF", scope="linear")
    assert [t.name for t in linear] == [
        "mlp_layers.mlp_layers.1.weight",
        "mlp_layers.mlp_layers.4.weight",
        "predict_layer.weight",
    ]
    _, everything = scope_of("NeuMF", scope="all")
    _, tables = scope_of("NeuMF")
    assert {t.name for t in everything} == {t.name for t in linear} | {t.name for t in tables}
    assert everything.prunable == linear.prunable + tables.prunable


def test_recurrent_weights_are_found() -> None:
    _, scope = scope_of("GRU4RecCPR", "sequential", scope="all")
    kinds = {t.name: t.kind for t in scope}
    assert kinds["gru_layers.weight_hh_l0"] == "recurrent" and kinds["dense.weight"] == "linear"
    assert not any("bias" in name for name in kinds)


def test_include_and_exclude_patterns() -> None:
    _, only_users = scope_of("NeuMF", include=["user_*"])
    assert [t.name for t in only_users] == ["user_mf_embedding.weight", "user_mlp_embedding.weight"]
    _, without_mlp = scope_of("NeuMF", exclude=["*_mlp_embedding.weight"])
    assert [t.name for t in without_mlp] == ["user_mf_embedding.weight", "item_mf_embedding.weight"]
    _, both = scope_of("NeuMF", include=["user_*", "item_mf*"], exclude=["*mlp*"])
    assert [t.name for t in both] == ["user_mf_embedding.weight", "item_mf_embedding.weight"]
    reasons = {e.name: e.reason for e in both.exclusions}
    assert reasons["item_mlp_embedding.weight"] == "not in prune_include"
    assert reasons["user_mlp_embedding.weight"] == "in prune_exclude"


def test_patterns_see_both_names_of_a_tied_table() -> None:
    _, included = scope_of("GRU4RecCPR", "sequential", include=["out_item_embedding.weight"])
    assert [t.name for t in included] == ["item_embedding.weight"]
    _, excluded = scope_of("GRU4RecCPR", "sequential", exclude=["out_item_embedding.weight"])
    assert [t.name for t in excluded] == []


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_without_a_match_is_an_error(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"prune_{key}: the pattern 'usr_\*' matches no parameter.*user_embedding"):
        scope_of("BPR", **{key: ["user_*", "usr_*"]})


def test_an_empty_scope_says_why() -> None:
    _, scope = scope_of("BPR", scope="linear")
    assert scope.prunable == 0
    with pytest.raises(NothingToPrune, match=r"BPR has nothing to prune.*embedding table, prune_scope is linear"):
        scope.require_targets("BPR")
    _, full = scope_of("BPR")
    assert full.require_targets("BPR") is full


def test_targets_can_be_moved_out() -> None:
    module, scope = scope_of("BPR")
    smaller = scope.without(["user_embedding.weight"], "received no gradient")
    check_partition(module, smaller)
    assert [t.name for t in smaller] == ["item_embedding.weight"]
    assert smaller.exclusions[-1].reason == "received no gradient"
    assert scope.without([], "nothing") is scope


# ---- awkward modules


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))


class Awkward(nn.Module):
    """Parameters of every kind that a model may own."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(4, 10, bias=False)
        self.items = nn.Embedding(10, 4, padding_idx=0)
        self.output.weight = self.items.weight  # the matrix is registered first, the table owns the padding row
        self.item_bias = nn.Embedding(10, 1)
        self.user_bias = nn.Parameter(torch.zeros(5, 1))
        self.scale = nn.Parameter(torch.ones(()))
        self.gate = nn.Parameter(torch.ones(1, 7))
        self.mixing = nn.Parameter(torch.ones(4, 7))
        self.convolution = nn.Conv1d(4, 3, 2)
        self.cell = nn.GRUCell(4, 3)
        self.narrow = nn.Linear(4, 1)
        self.norm = RMSNorm()
        self.batch_norm = nn.BatchNorm1d(3)
        self.fixed = nn.Embedding(10, 4)
        self.fixed.weight.requires_grad_(False)
        self.only_padding = nn.Embedding(1, 4, padding_idx=0)


def test_awkward_parameters() -> None:
    model = Awkward()
    scope = find_scope(model, scope="all", padding=PaddingRule())
    check_partition(model, scope)
    assert {t.name: (t.kind, t.padding_rows) for t in scope if t.kind != "embedding"} == {
        "mixing": ("linear", ()),
        "convolution.weight": ("conv", ()),
        "cell.weight_ih": ("recurrent", ()),
        "cell.weight_hh": ("recurrent", ()),
        "narrow.weight": ("linear", ()),
    }
    reasons = {e.name: e.reason for e in scope.exclusions}
    assert reasons == {
        "item_bias.weight": "bias",
        "user_bias": "bias",
        "scale": "vector or scalar",
        "gate": "vector or scalar",
        "convolution.bias": "bias",
        "cell.bias_ih": "bias",
        "cell.bias_hh": "bias",
        "narrow.bias": "bias",
        "norm.weight": "normalisation",
        "batch_norm.weight": "normalisation",
        "batch_norm.bias": "normalisation",
        "fixed.weight": "frozen (does not require a gradient)",
        "only_padding.weight": "only padding",
    }


def test_a_table_tied_to_a_matrix_is_a_table_whichever_comes_first() -> None:
    scope = find_scope(Awkward(), padding=PaddingRule())
    (target,) = scope
    assert target.kind == "embedding" and target.padding_rows == (0,)
    assert {target.name, *target.tied_to} == {"items.weight", "output.weight"}
    assert target.prunable == 9 * 4
    assert [t.name for t in find_scope(Awkward(), scope="linear") if t.name in ("items.weight", "output.weight")] == []


class Tables(nn.Module):
    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            setattr(self, name, nn.Embedding(size, 2))


def test_padding_rows_are_found_by_the_size_of_the_field() -> None:
    rule = PaddingRule(frozenset({944, 1683, 22}))
    model = Tables(
        user=944,
        item=1683,
        item_and_mask_token=1684,
        relation_and_interaction=23,
        factor=4,
        position_embedding=22,
        float_embedding_table=22,
    )
    rows = {t.name.split(".")[0]: t.padding_rows for t in find_scope(model, padding=rule)}
    assert rows == {
        "user": (0,),
        "item": (0,),
        "item_and_mask_token": (0,),
        "relation_and_interaction": (0,),
        "factor": (),
        "position_embedding": (),
        "float_embedding_table": (),  # one row per number, none of them a token
    }


def test_countable_and_width_of_higher_dimensions() -> None:
    target = Target("t", "conv", (5, 2, 3), (1, 4))
    assert (target.rows, target.width, target.prunable) == (3, 6, 18)
    assert target.countable().tolist() == [True, False, True, True, False]
