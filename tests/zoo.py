"""Every model of RecBole: what kind it is and the settings with which it runs in about a second on ``zoo_data``.

The list is read from RecBole's packages, the settings follow from a model's kind, its class and its property file.
What cannot be derived stands in ``_EXCEPTIONS`` and ``_STAGES``.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import importlib.util
import os
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from zoo_data import DATASET, ENTITY_WIDTH

from recbole_prune import compat
from recbole_prune.config.paths import properties_dir
from recbole_prune.models import join_recbole

__all__ = [
    "DATASET",
    "all_models",
    "config_for",
    "gradient_models",
    "input_type_of",
    "kind_of",
    "missing_package",
    "not_prunable_models",
    "stages_of",
]

compat.apply()
join_recbole()

Settings = dict[str, Any]

_KINDS = {
    "GENERAL": "general",
    "SEQUENTIAL": "sequential",
    "CONTEXT": "context",
    "KNOWLEDGE": "knowledge",
    "TRADITIONAL": "traditional",
    "DECISIONTREE": "tree",
}
_WIDTH = 16
_WIDTH_KEY = re.compile(r"(size|size_list|dim|dims|dims_dnn|dimension|layers|rank|kernel|clusters|t_cin)$")
_NOT_A_WIDTH = re.compile(r"(kernel_size|n_layers|num_layers)$")

NEW_IN_1_2_1 = {"GRU4RecCPR", "SASRecCPR"}  # models that RecBole 1.2.0 lacks
# a model of every trainer class that trains by gradient; tests/test_determinism.py checks that none is missing
OF_EVERY_TRAINER = ["BPR", "CKE", "KTUP", "KGAT", "MKR", "RecVAE", "NCL", "S3Rec", "RaCT"]


@dataclass(frozen=True)
class Stages:
    """Training in stages, each of which starts from the checkpoint of the one before.

    Attributes:
        key: the setting that names the stage.
        names: the stages in order; the last one trains the model that is evaluated.
        checkpoint_key: the setting that takes the path of the checkpoint.
    """

    key: str
    names: tuple[str, ...]
    checkpoint_key: str


_STAGES = {
    "RaCT": Stages("train_stage", ("actor_pretrain", "critic_pretrain", "finetune"), "pre_model_path"),
    "S3Rec": Stages("train_stage", ("pretrain", "finetune"), "pre_model_path"),
    "KD_DAGFM": Stages("phase", ("teacher_training", "distillation", "finetuning"), "warm_up"),
}

_INTERACTIONS = {"inter": ["user_id", "item_id", "rating", "timestamp"]}
_USER_FEATURES = {"user": ["user_id", "age", "gender", "occupation"]}
_ITEM_FEATURES = {"item": ["item_id", "release_year", "class"]}
_KNOWLEDGE_GRAPH = {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
_PRETRAINED_VECTORS: Settings = {
    "additional_feat_suffix": ["ent", "rel"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "alias_of_entity_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "embedding_size": ENTITY_WIDTH,
    "kg_embedding_size": ENTITY_WIDTH,
}

# what the rules below cannot know, each with its reason
_EXCEPTIONS: dict[str, Settings] = {
    # the strides must shrink a map of embedding_size x embedding_size to one cell
    "ConvNCF": {"cnn_channels": [1, 8, 8], "cnn_kernels": [4, 4], "cnn_strides": [4, 4]},
    # one positive stands for hundreds of negatives
    "UltraGCN": {"negative_num": 20, "initial_std": 0.1},
    # each relation has an embedding_size x embedding_size matrix, gathered for every memory slot: slow
    "RippleNet": {"embedding_size": 8, "n_memory": 4},
    # its contrastive loss compares all pairs of a batch and builds the graph anew for each: slow
    "MCCLK": {"train_batch_size": 256, "user_inter_num_interval": "[0,36]"},
}


@functools.cache
def _model_files() -> dict[str, tuple[str, ast.ClassDef]]:
    """For each model the name of its module and the syntax tree of its class.

    RecBole finds a model by the rule applied here: the class whose name in lower case is the name of the module. The
    source is read instead of imported, so that models whose package is missing are listed too.
    """
    found: dict[str, tuple[str, ast.ClassDef]] = {}
    for package in pkgutil.iter_modules(importlib.import_module("recbole.model").__path__, "recbole.model."):
        if not package.ispkg:
            continue
        spec = importlib.util.find_spec(package.name)
        folders = list(spec.submodule_search_locations or []) if spec else []
        for module in pkgutil.iter_modules(folders, f"{package.name}."):
            folder = str(getattr(module.module_finder, "path"))  # noqa: B009 - not in the protocol of finders
            source = Path(folder, module.name.rsplit(".", 1)[1] + ".py").read_text(encoding="utf-8")
            for node in ast.parse(source).body:
                if isinstance(node, ast.ClassDef) and node.name.lower() == module.name.rsplit(".", 1)[1]:
                    found[node.name] = (module.name, node)
    return found


def all_models() -> list[str]:
    """Names of all models of the installed RecBole, sorted."""
    return sorted(_model_files(), key=str.lower)


def missing_package(model: str) -> str | None:
    """Why ``model`` cannot be imported, beginning with the name of the missing package; None if it can."""
    try:
        importlib.import_module(_model_files()[model][0])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "recbole":
            raise
        return f"{error.name} is not installed: {error}"
    return None


def _attribute(model: str, name: str) -> str | None:
    """Name of the enum member that the class attribute ``name`` (``type``, ``input_type``) holds; None if absent."""
    module, node = _model_files()[model]
    if missing_package(model) is None:
        value = getattr(getattr(importlib.import_module(module), model), name, None)
        return None if value is None else str(value.name)
    for statement in node.body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Attribute)
            and any(isinstance(target, ast.Name) and target.id == name for target in statement.targets)
        ):
            return statement.value.attr
    return None


def kind_of(model: str) -> str:
    """``general``, ``sequential``, ``context``, ``knowledge``, ``traditional`` (fitted when built) or ``tree``."""
    return _KINDS[_attribute(model, "type") or ""]


def input_type_of(model: str) -> str | None:
    """``POINTWISE``, ``PAIRWISE`` or ``LISTWISE``; None if the setting ``loss_type`` decides."""
    return _attribute(model, "input_type")


def _defines(model: str, method: str) -> ast.FunctionDef | None:
    for node in _model_files()[model][1].body:
        if isinstance(node, ast.FunctionDef) and node.name == method:
            return node
    return None


def _has_constant_loss(model: str) -> bool:
    """Whether the loss is a parameter made on the spot, RecBole's idiom for a model that has nothing to train."""
    loss = _defines(model, "calculate_loss")
    returned = [node.value for node in ast.walk(loss) if isinstance(node, ast.Return) and node.value] if loss else []
    return bool(returned) and all("nn.Parameter(" in ast.unparse(value) for value in returned)


@functools.cache
def _trains_by_gradient(model: str) -> bool:
    return kind_of(model) not in ("traditional", "tree") and not _has_constant_loss(model)


def gradient_models() -> list[str]:
    """The models that train by gradient and can be pruned."""
    return [model for model in all_models() if _trains_by_gradient(model)]


def not_prunable_models() -> list[str]:
    """The models that have no weights trained by gradient: fitted when built, trees, or with a constant loss."""
    return [model for model in all_models() if not _trains_by_gradient(model)]


def stages_of(model: str) -> Stages | None:
    """The training stages of ``model``, None if it trains in one go."""
    return _STAGES.get(model)


def config_for(model: str, data_path: Path, stage: str | None = None, stage_checkpoint: Path | None = None) -> Settings:
    """Minimal settings to run one epoch of ``model`` on the data set ``tiny``.

    Args:
        model: name of a model.
        data_path: the folder given to ``zoo_data.make_dataset``.
        stage: one of ``stages_of(model).names``; by default RecBole's default, the first.
        stage_checkpoint: the checkpoint of the stage before, for all stages but the first.

    Returns:
        A new dict for ``Config(model, DATASET, config_dict=...)``; nothing in it is shared between calls.
    """
    settings: Settings = {
        "data_path": str(data_path),
        "epochs": 1,
        "gpu_id": os.environ.get("TESTS_GPU_ID", ""),
        "show_progress": False,
        # plain RecBole does not know the property file of a model of ours
        **(_property_file(model) if _own_property_file(model).is_file() else {}),
        "train_batch_size": 1024,
        **_narrow_widths(model),
        **_settings_by_kind(model),
        **copy.deepcopy(_EXCEPTIONS.get(model, {})),
    }
    stages = stages_of(model)
    if stages is not None:
        settings[stages.key] = stage or stages.names[0]
        settings.update({"pretrain_epochs": 1, "save_step": 1})
        if stage_checkpoint is not None:
            settings[stages.checkpoint_key] = str(stage_checkpoint)
    return settings


@functools.cache
def _property_file(model: str) -> Settings:
    folder = Path(importlib.import_module("recbole.config").__path__[0]).parent / "properties" / "model"
    for file in (folder / f"{model}.yaml", folder / f"{model.lower()}.yaml", _own_property_file(model)):
        if os.path.isfile(file):
            return yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader) or {}
    return {}


def _own_property_file(model: str) -> Path:
    return properties_dir() / "model" / f"{model}.yaml"


def _narrow_widths(model: str) -> Settings:
    """The widths of layers in the model's property file, none wider than ``_WIDTH``."""

    def narrow(value: Any) -> Any:
        if isinstance(value, list):
            return [narrow(element) for element in value]
        return min(value, _WIDTH) if isinstance(value, int) else value

    return {
        key: narrow(value)
        for key, value in _property_file(model).items()
        if _WIDTH_KEY.search(key) and not _NOT_A_WIDTH.search(key) and not isinstance(value, (bool, str))
    }


def _settings_by_kind(model: str) -> Settings:
    kind = kind_of(model)
    if kind in ("context", "tree"):
        return {
            "load_col": {**_INTERACTIONS, **_USER_FEATURES, **_ITEM_FEATURES},
            "threshold": {"rating": 4},
            "metrics": ["AUC", "LogLoss"],
            "valid_metric": "AUC",
        }
    settings = {"metrics": ["Recall", "NDCG"], "topk": [10], "valid_metric": "NDCG@10"}
    if kind == "knowledge":
        settings["load_col"] = {**_INTERACTIONS, **_KNOWLEDGE_GRAPH}
    elif kind == "sequential":
        settings.update(_sequential_settings(model))
    return settings


def _sequential_settings(model: str) -> Settings:
    defaults = _property_file(model)
    columns = dict(_INTERACTIONS)
    settings: Settings = {
        "load_col": columns,
        "MAX_ITEM_LIST_LENGTH": 6,
        "user_inter_num_interval": "[0,36]",  # every prefix of a history is a row: short histories save time
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    }
    if input_type_of(model) is None and defaults.get("loss_type") == "CE":
        settings["train_neg_sample_args"] = None  # RecBole refuses negative samples with CE
    if "selected_features" in defaults:
        settings["selected_features"] = ["class", "release_year"]
    if "selected_features" in defaults or "item_attribute" in defaults:
        columns.update(_ITEM_FEATURES)
    if "freeze_kg" in defaults:
        settings.update(copy.deepcopy(_PRETRAINED_VECTORS))
        columns.update({**_KNOWLEDGE_GRAPH, "ent": ["ent_id", "ent_emb"], "rel": ["rel_id", "rel_emb"]})
    if _defines(model, "full_sort_predict") is None:  # click models: RecBole's own default is uni100 with AUC
        columns.update({**_USER_FEATURES, **_ITEM_FEATURES})
        settings["eval_args"]["mode"] = "uni20"
        settings.update({"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC"})
    return settings
