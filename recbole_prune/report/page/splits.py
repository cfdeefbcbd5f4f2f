"""Whether runs can stand in one table: the same data, cut into training, validation and test in the same way."""

from __future__ import annotations

from collections.abc import Mapping

from recbole_prune.anatomy.prunable import read_models
from recbole_prune.errors import ConfigError
from recbole_prune.report.folders import RunRecord

# what RecBole takes where a run sets nothing: by kind of model, then by setting
_USUAL: Mapping[str, object] = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}
_OF_KIND: Mapping[str, Mapping[str, object]] = {
    "sequential": {**_USUAL, "split": {"LS": "valid_and_test"}, "order": "TO"},
    "context": {**_USUAL, "group_by": None, "mode": "labeled"},
}
# further settings that decide which interactions there are
_OF_THE_DATA = {
    "benchmark_filename": None, "user_inter_num_interval": "[0,inf)", "item_inter_num_interval": "[0,inf)",
    "val_interval": None, "filter_inter_by_user_or_item": True, "rm_dup_inter": None,
}  # fmt: skip
_PARTS = ("valid", "test")


def refuse_other_data(first: RunRecord, other: RunRecord) -> None:
    """Refuse runs whose metrics say nothing about each other; another seed of one split is another sample of it.

    Raises:
        ConfigError: dataset, its files, its filters or its split differ.
    """
    one, another = _facts(first), _facts(other)
    for what in {**one, **another}:
        if one.get(what) != another.get(what):
            raise ConfigError(
                f"report: {first.path} and {other.path} cannot be compared: {what} is {one.get(what)} in one and "
                f"{another.get(what)} in the other; name only folders of one dataset and split"
            )


def _facts(run: RunRecord) -> dict[str, object]:
    filters = {name: run.settings.get(name, usual) for name, usual in _OF_THE_DATA.items()}
    files = run.record.get("data_sha256")
    return {"dataset": run.dataset, "sha256 of the dataset's files": files, **filters, **_split_of(run)}


def _split_of(run: RunRecord) -> dict[str, object]:
    """How interactions are split and ranked, what RecBole adds to the run's own words included."""
    kind = next((model.kind for model in read_models() if model.name == run.model), "")
    given = run.settings.get("eval_args")
    found: dict[str, object] = {**_OF_KIND.get(kind, _USUAL), **(given if isinstance(given, Mapping) else {})}
    mode = found.pop("mode")
    modes = mode if isinstance(mode, Mapping) else dict.fromkeys(_PARTS, mode)
    filled = {part: modes.get(part, next(iter(modes.values()), "full")) for part in _PARTS}
    return {**{f"eval_args {name}": value for name, value in found.items()}, "eval_args mode": filled}
