"""The property files, their grammar, and checking against them."""

from __future__ import annotations

import contextlib
import shutil
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recbole_prune.config import grammar, paths, schema
from recbole_prune.config.settings import HostFacts, Settings, defaults, settle
from recbole_prune.errors import ConfigError

KEYS = schema.known_keys()
HEAD = "#: Run; used by: every run; changes: nothing\n"
HOST = HostFacts(epochs=300, model="BPR", own_l2=False)


# ---- files and grammar -----------------------------------------------------------------------------------------------


def test_every_line_of_overall_yaml_is_a_key():
    raw = yaml.safe_load((paths.properties_dir() / "overall.yaml").read_text(encoding="utf-8"))
    assert list(raw) == list(KEYS)


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_defaults_pass_their_own_check(key):
    assert key.check(key.default) == key.default
    assert key.check(str(key.default)) == key.default, "also as the text of a command line"
    for method, default in key.methods.items():
        assert key.check(default) == default, method


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_keys_are_documented(key):
    assert len(key.meaning) > 10 and key.section and key.changes
    assert "[" not in key.meaning, "a range that was not understood"
    if key.listed:
        assert key.methods, "no method uses it"


def test_names_are_in_the_name_space():
    others = {"pruner", "distiller", "recipe", "recipe_notice", "output_dir", "cache_dataset"}
    others |= {"fresh", "dry_run", "verbose"}
    assert {name for name in KEYS if not name.startswith(schema.PREFIXES)} == others


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("rate: 1  # (int) a rate [x >= 1]\n", "line 1"),
        (HEAD + "rate: 1\n", "line 2"),
        (HEAD + "rate: 1  # a rate\n", "line 2"),
        (HEAD + "rate: 1  # (int) a rate\nrate: 2  # (int) again\n", "line 3"),
        (HEAD + "rate: 1  # (integer) a rate\n", "(integer)"),
        (HEAD + "rate: 1  # (int) a rate [positive]\n", "[positive]"),
        (HEAD + "rate: 1  # (int) a [rate] of [x >= 1]\n", "rate"),
        (HEAD + "rate: 0  # (int) a rate [x >= 1]\n", "rate=0 is not allowed"),
        (HEAD + "rate: ~  # (int) a rate\n", "rate=None is not allowed"),
        ("#: Run; used by: some; changes: nothing\n", "line 1"),
        ("#: Run; changes: nothing\n", "line 1"),
    ],
)
def test_text_outside_the_grammar_is_refused(text, part):
    with pytest.raises(ConfigError) as error:
        grammar.parse(text, "file.yaml")
    assert part in str(error.value)


def test_continuation_lines_belong_to_the_key_above():
    text = HEAD + "a: 1  # (int) first\n      #   and more [x >= 1]\n# for the reader\nb: ~  # (str or empty) second\n"
    found = grammar.parse(text, "file.yaml")
    assert found["a"].meaning == "first and more" and found["a"].range == "x >= 1"
    assert found["b"].optional and found["b"].default is None


def test_properties_are_found_beside_and_inside_the_package(tmp_path: Path):
    package = tmp_path / "somewhere" / "recbole_prune"
    package.mkdir(parents=True)
    with pytest.raises(ConfigError, match="install the package again"):
        paths.properties_dir(package)
    shutil.copytree(paths.properties_dir(), package.parent / "properties")
    assert paths.properties_dir(package) == package.parent / "properties"
    shutil.copytree(paths.properties_dir(), package / "properties")
    assert paths.properties_dir(package) == package / "properties"


@pytest.mark.parametrize("name", schema.method_names("pruner"))
def test_pruner_files_say_what_they_are(name):
    lines = paths.property_file("pruner", name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert len(schema.describe_method("pruner", name)) > 20
    listed = yaml.safe_load("\n".join(lines)) or {}
    assert set(listed) == {key.name for key in KEYS.values() if ("pruner", name) in key.methods}


def test_the_recipes_differ_in_the_selection_only():
    leaky, clean = (
        yaml.safe_load(paths.property_file("recipe", name).read_text(encoding="utf-8"))
        for name in ("lth_mrs", "lth_mrs_clean")
    )
    assert (leaky.pop("prune_select"), clean.pop("prune_select")) == ("test", "valid")
    assert "TEST" in leaky.pop("recipe_notice") and "validation" in clean.pop("recipe_notice")
    assert leaky == clean


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("prune_rate", "0.1", 0.1),
        ("prune_rate", "1e-1", 0.1),
        ("prune_l2_weight", 1, 1.0),
        ("prune_stop_below", 1, 1.0),
        ("prune_rounds", "7", 7),
        ("prune_rounds", "None", None),
        ("prune_rounds", "", None),
        ("prune_target_sparsity", "~", None),
        ("prune_min_per_row", 0, 0),
        ("fresh", "true", True),
        ("fresh", "False", False),
        ("prune_rewind", None, "none"),
        ("prune_rewind", "None", "none"),
        ("pruner", "None", "none"),
        ("distiller", "none", None),
        ("prune_include", "*user*", ["*user*"]),
        ("prune_include", "*user*, item?", ["*user*", "item?"]),
        ("prune_include", "['*user*', 'item']", ["*user*", "item"]),
        ("prune_include", ("a", "b"), ["a", "b"]),
        ("distill_teacher_models", "[BPR, LightGCN]", ["BPR", "LightGCN"]),
        ("distill_teacher", "[runs/a,runs/b]", ["runs/a", "runs/b"]),
        ("prune_exclude", None, []),
        ("prune_exclude", "[]", []),
        ("output_dir", "2024", "2024"),
        ("output_dir", 2024, "2024"),
        (
            "distill_teacher_settings",
            "{'embedding_size': 200, \"a\": [None, 'b']}",
            {"embedding_size": 200, "a": [None, "b"]},
        ),
        ("distill_teacher_settings", '{"a": {"b": true}, "c": null}', {"a": {"b": True}, "c": None}),
        ("distill_teacher_settings", {"a": 1.5}, {"a": 1.5}),
        ("distill_teacher_settings", "None", {}),
        ("distill_teacher_settings", "", {}),
        ("distill_teacher", Path("saved/BPR.pth"), ["saved/BPR.pth"]),
        ("distill_teacher", "~/BPR.pth", [str(Path.home() / "BPR.pth")]),
        ("distill_teacher", "a.pth, ~/b", ["a.pth", str(Path.home() / "b")]),
        ("distill_teacher", "['a,b.pth', 'c']", ["a,b.pth", "c"]),
        ("distill_teacher", ["a,b.pth", Path("c")], ["a,b.pth", "c"]),
        ("distill_teacher", "(old)/a.pth", ["(old)/a.pth"]),
        ("distill_teacher", None, []),
    ],
)
def test_values_are_converted(name, value, expected):
    checked = schema.check(name, value)
    assert checked == expected and type(checked) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("prune_rate", 0, "0 < prune_rate < 1"),
        ("prune_rate", 1.0, "0 < prune_rate < 1"),
        ("prune_rate", "a lot", "a float"),
        ("prune_rate", True, "a float"),
        ("prune_rate", None, "a float"),
        ("prune_rate", "nan", "a float"),
        ("prune_target_sparsity", 1, "0 < prune_target_sparsity < 1, or empty"),
        ("prune_stop_below", 0, "0 < prune_stop_below <= 1"),
        ("prune_stop_below", 1.01, "0 < prune_stop_below <= 1"),
        ("prune_rounds", 0, "prune_rounds >= 1"),
        ("prune_rounds", 2.0, "an int"),
        ("prune_rounds", "2.5", "an int"),
        ("prune_rounds", True, "an int"),
        ("prune_l2_weight", -1e-9, "prune_l2_weight >= 0"),
        ("prune_l2_weight", float("inf"), "a float"),
        ("prune_min_per_row", -1, "prune_min_per_row >= 0"),
        ("fresh", 1, "True or False"),
        ("fresh", "yes", "True or False"),
        ("prune_rewind", "latte", "init, late, lr, none, reinit; did you mean prune_rewind=late?"),
        ("prune_rewind", "LR", "did you mean prune_rewind=lr?"),
        ("prune_rewind", True, "one of init"),
        ("pruner", "imps", "did you mean pruner=imp?"),
        ("pruner", "", "one of"),
        ("distiller", "rankdistil", "there is no file in properties/distiller yet"),
        ("recipe", "lth_msr", "did you mean recipe=lth_mrs?"),
        ("output_dir", None, "a str"),
        ("output_dir", "", "a str"),
        ("output_dir", ["a"], "a str"),
        ("prune_include", "[1]", "a list of words"),
        ("prune_include", "[unclosed", "a list of words"),
        ("prune_include", "[a,,b]", "a list of words"),
        ("prune_include", "[a, 'b]", "a list of words"),
        ("prune_include", 3, "a list of words"),
        ("export_values", "fp8", "fp32, fp16, int8"),
        ("distill_teacher_settings", "embedding_size", "a dict such as {'key': value}"),
        ("distill_teacher_settings", "{'a': __import__('os').getcwd()}", "a dict such as {'key': value}"),
        ("distill_teacher_settings", "{1: 2}", "a dict such as {'key': value}"),
        ("distill_teacher_settings", ["a"], "a dict such as {'key': value}"),
        ("distill_teacher", True, "paths of files or folders, with commas between"),
        ("distill_teacher", "a,,b", "paths of files or folders, with commas between"),
        ("distill_teacher", ["a", 1], "paths of files or folders, with commas between"),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(name, value, allowed):
    if name == "distiller" and schema.method_names("distiller"):
        pytest.skip("there are distillers now")
    with pytest.raises(ConfigError) as error:
        schema.check(name, value)
    message = str(error.value)
    assert message.startswith(f"{name}=") and allowed in message
    assert "\n" not in message and str(value) in message


@given(st.floats())
def test_a_rate_is_accepted_exactly_inside_its_range(value):
    try:
        accepted = schema.check("prune_rate", value) == value
    except ConfigError:
        accepted = False
    assert accepted == (0 < value < 1)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_whatever_comes_in_is_checked_or_refused(value):
    for name, key in KEYS.items():
        with contextlib.suppress(ConfigError):
            checked = schema.check(name, value)
            assert key.check(checked) == checked, "a checked value passes again"


# ---- names and help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("prunner", "pruner"),
        ("output_dri", "output_dir"),
        ("fersh", "fresh"),
        ("dry-run", "dry_run"),
        ("Pruner", "pruner"),
        ("prune_rewnd", "prune_rewind"),
        ("prune_target", "prune_target_sparsity"),
        ("export_value", "export_values"),
    ],
)
def test_near_misses_are_answered(wrong, right):
    assert schema.in_name_space(wrong) or right in schema.suggest(wrong)
    assert f"did you mean --{right}?" in schema.unknown_key(wrong)


@pytest.mark.parametrize(
    "name", ["learning_rate", "seed", "metrics", "embedding_size", "topk", "dropout_prob", "epochs"]
)
def test_other_names_are_left_alone(name):
    assert not schema.in_name_space(name) and not schema.suggest(name)


def test_unknown_names_of_the_name_space_are_refused():
    for name in ("prune_foo", "distill_alpha", "measure_energy", "export_everything"):
        if name not in KEYS:
            assert schema.in_name_space(name)
            with pytest.raises(ConfigError, match="is not a setting of recbole_prune"):
                schema.check(name, 1)


def test_help_shows_every_key_default_range_and_method():
    text = schema.help_text()
    squeezed = " ".join(text.split())
    for key in KEYS.values():
        assert f"--{key.name}=" in text and key.allowed in squeezed
    for kind in schema.METHOD_KINDS:
        for method in schema.method_names(kind):
            assert f"--{kind}={method}" in text
    assert "prune_allocation=tensor" in text, "a method's own default"
    assert all(len(line) <= 110 for line in text.splitlines())


# ---- combinations ----------------------------------------------------------------------------------------------------


def settled(user, recipe=None, host=HOST):
    return settle(user, recipe or {}, host)[0]


def schedule(settings):
    return settings.prune_rate, settings.prune_rounds, settings.prune_target_sparsity


@pytest.mark.parametrize(
    ("user", "recipe", "expected"),
    [
        ({}, {}, (0.2, 10, None)),
        ({"prune_rate": 0.1}, {}, (0.1, 10, None)),
        ({"prune_rounds": 3}, {}, (0.2, 3, None)),
        ({"prune_rounds": None}, {}, (0.2, 10, None)),
        ({"prune_target_sparsity": 0.9}, {}, (0.2, None, 0.9)),
        ({"prune_target_sparsity": 0.9, "prune_rounds": 5}, {}, (0.2, 5, 0.9)),
        ({"prune_target_sparsity": 0.9, "prune_rate": 0.5}, {}, (0.5, None, 0.9)),
        ({"prune_target_sparsity": 0.9, "prune_rate": 0.5, "prune_rounds": None}, {}, (0.5, None, 0.9)),
        ({}, {"prune_rate": 0.1, "prune_rounds": 29}, (0.1, 29, None)),
        ({"prune_target_sparsity": 0.9}, {"prune_rate": 0.1, "prune_rounds": 29}, (0.1, None, 0.9)),
        ({"prune_rounds": 5}, {"prune_rate": 0.1, "prune_target_sparsity": 0.9}, (0.2, 5, 0.9)),
        ({"prune_rate": 0.5, "prune_rounds": 5}, {"prune_target_sparsity": 0.9}, (0.5, 5, None)),
        ({"prune_target_sparsity": None}, {"prune_rounds": 5, "prune_target_sparsity": 0.9}, (0.2, 5, None)),
    ],
)
def test_two_settings_fix_the_schedule_and_the_user_goes_before_the_recipe(user, recipe, expected):
    assert schedule(settled({"pruner": "imp", **user}, recipe)) == expected


@pytest.mark.parametrize(
    ("user", "part"),
    [
        ({"prune_rate": 0.1, "prune_rounds": 3, "prune_target_sparsity": 0.5}, "keep prune_target_sparsity and"),
        ({"prune_rewind": "late"}, "1 <= prune_rewind_epoch < epochs=300"),
        ({"prune_rewind_epoch": 3}, "add --prune_rewind=late"),
        ({"prune_rewind": "late", "prune_rewind_epoch": 300}, "prune_rewind_epoch=300 is not allowed"),
        ({"prune_lr_warmup": 300}, "it must be below epochs=300"),
        (
            {"pruner": "structured", "prune_rewind": "late", "prune_rewind_epoch": 80, "prune_round_epochs": 75},
            "below prune_round_epochs=75",
        ),
        ({"pruner": "structured", "prune_lr_warmup": 9, "prune_round_epochs": 9}, "below prune_round_epochs=9"),
        ({"prune_parity": "official", "prune_target_sparsity": 0.5}, "prune_parity=official"),
        ({"prune_parity": "official", "prune_min_per_row": 1}, "prune_min_per_row=1"),
        ({"export_ticket": 11}, "tickets 0 to 10"),
        ({"export_ticket": 1, "pruner": "none"}, "tickets 0 to 0"),
        ({"export_ticket": 4, "prune_rounds": 3, "prune_target_sparsity": 0.5}, "tickets 0 to 3"),
    ],
)
def test_impossible_combinations_are_refused(user, part):
    with pytest.raises(ConfigError) as error:
        settled({"pruner": "imp", **user})
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["distill_interesting", "distill_item_interesting"])
@pytest.mark.parametrize("method", schema.method_names("distiller"))
def test_no_more_is_taken_of_a_list_than_it_has(method, key):
    uses = [("distiller", method) in KEYS[name].methods for name in (key, "distill_list_length")]
    teacher = {} if method == "concf" else {"distill_teacher_models": ["BPR", "NeuMF"]}
    counts = {"distill_interesting": 5, "distill_item_interesting": 5, "distill_list_length": 30}
    user = {"distiller": method, **teacher, **counts, "distill_student_length": 99, "distill_drawn": 9}
    settled({**user, key: 30})
    if not all(uses) or method in ("cd", "unkd"):
        settled({**user, key: 31})  # cd and unkd draw with replacement
        return
    with pytest.raises(ConfigError, match=f"{key}=31 is not allowed: it must be at most distill_list_length=30"):
        settled({**user, key: 31})
    del user[key]
    with pytest.raises(ConfigError, match="at most distill_list_length=30"):
        settled(user, {key: 31})


def test_what_is_not_drawn_may_be_more_than_a_list_has():
    user = {"distiller": "dcd", "distill_teacher_model": "BPR", "distill_interesting": 9, "distill_list_length": 9}
    assert settled({**user, "distill_parity": "kds"}).distill_item_interesting == 100


@pytest.mark.parametrize(
    "user",
    [
        {"prune_rewind": "late", "prune_rewind_epoch": 299},
        {"prune_lr_warmup": 299},
        {"prune_parity": "official", "prune_min_per_row": 0},
        {"export_ticket": 10},
        {"export_ticket": 50, "prune_target_sparsity": 0.99},
        {"prune_rewind_epoch": None},
    ],
)
def test_combinations_at_the_edge_are_allowed(user):
    settings = settled({"pruner": "imp", **user})
    assert all(settings[name] == value for name, value in user.items())


@pytest.mark.parametrize(
    ("user", "host", "warning"),
    [
        ({"pruner": "magprune", "prune_rewind": "lr"}, HOST, "prune_rewind has no effect with --pruner=magprune"),
        ({"pruner": "none", "prune_rate": 0.1}, HOST, "prune_rate has no effect with --pruner=none"),
        (
            {"distiller": "rrd", "distill_teacher_model": "BPR", "distill_guide": "teacher"},
            HOST,
            "distill_guide has no effect with --distiller=rrd",
        ),
        (
            {"distiller": "rrd", "distill_teacher_model": "BPR", "distill_sharpness": 3},
            HOST,
            "distill_sharpness has no effect with distill_sample_interesting=False",
        ),
        (
            {"distiller": "cd", "distill_teacher_model": "BPR", "distill_sharpness": 3},
            HOST,
            "distill_sharpness has no effect with distill_rule=linear",
        ),
        (
            {"distiller": "dcd", "distill_teacher_model": "BPR", "distill_parity": "kds", "distill_refresh": 5},
            HOST,
            "distill_refresh has no effect with distill_parity=kds",
        ),
        *(
            ({"distiller": "concf", weight: 0, name: value}, HOST, f"{name} has no effect with {weight}=0.0")
            for weight, name, value in (
                ("distill_head_weight", "distill_balance_power", 1.0),
                ("distill_head_weight", "distill_reference_epoch", 3),
                ("distill_weight", "distill_refresh", 3),
                ("distill_weight", "distill_window", 3),
                ("distill_weight", "distill_steadiness", 3.0),
                ("distill_weight", "distill_sharpness", 3.0),
                ("distill_weight", "distill_interesting", 300),
                ("distill_weight", "distill_list_length", 3),
                ("distill_weight", "distill_parity", "official"),
            )
        ),
        ({"pruner": "imp", "prune_rewind": "lr"}, HOST, "prune_rewind=lr equals prune_rewind=none"),
        ({"prune_select": "test"}, HOST, "leak"),
        ({"prune_l2_weight": 0.1}, HostFacts(300, "LightGCN", own_l2=True), "LightGCN has an L2 weight of its own"),
    ],
)
def test_settings_without_effect_are_warned_about(user, host, warning):
    settings, warnings = settle(user, {}, host)
    assert len(warnings) == 1 and warning in warnings[0]
    if "no effect" in warning:
        unused = warning.split()[0]
        assert settings[unused] == defaults(user.get("pruner"), user.get("distiller"))[unused], "it does not count"


def test_quiet_where_nothing_is_wrong():
    quiet = [
        {"pruner": "imp", "prune_rewind": "lr", "prune_lr_schedule": "cosine"},
        {"pruner": "imp", "prune_rewind": "lr", "prune_lr_warmup": 5},
        {"pruner": "imp", "prune_rewind": "none"},
        {"distiller": "concf", "distill_parity": "official", "distill_refresh": 5},
        {"distiller": "concf", "distill_weight": 0, "distill_balance_power": 1, "distill_heads": "mse"},
        {"distiller": "concf", "distill_head_weight": 0, "distill_window": 3, "distill_list_length": 60},
        {"distiller": "hetcomp", "distill_teacher": "a", "distill_weight": 0, "distill_refresh": 5},
        {"distiller": "dcd", "distill_teacher": "a", "distill_weight": 0, "distill_refresh": 5},
    ]
    assert not any(settle(user, {}, HOST)[1] for user in quiet)
    recipe = {"pruner": "imp", "prune_l2_weight": 1e-4, "prune_select": "test", "recipe_notice": "it leaks"}
    settings, warnings = settle(
        {"pruner": "magprune"}, {**recipe, "prune_parity": "official"}, HostFacts(9, "LightGCN", True)
    )
    assert warnings == [] and settings.prune_l2_weight == 0.0 and settings.prune_parity == "exact"


def test_settings_are_read_only_and_answer_by_attribute():
    settings = settled({"pruner": "imp", "prune_rate": "0.1"})
    assert settings.prune_rate == settings["prune_rate"] == 0.1
    assert settings.explicit == {"pruner", "prune_rate"}
    assert set(settings) == set(KEYS)
    for change in (
        lambda: setattr(settings, "prune_rate", 0.5),
        lambda: delattr(settings, "prune_rate"),
        lambda: settings.__setitem__("prune_rate", 0.5),
    ):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(AttributeError, match="did you mean prune_rate"):
        _ = settings.prune_rat
    assert Settings({"a": 1}) == {"a": 1}


# ---- pruners and distillers that share a name ------------------------------------------------------------------------


@pytest.fixture
def with_a_distiller_called_imp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Properties whose only distiller is ``distiller/imp.yaml``."""
    folder = tmp_path / "properties"
    shutil.copytree(paths.properties_dir(), folder)
    shutil.rmtree(folder / "distiller")
    (folder / "distiller").mkdir()
    (folder / "distiller" / "imp.yaml").write_text("# A teacher with the name of a pruner.\ndistill_weight: 0.5\n")
    for module in (paths, schema):
        monkeypatch.setattr(module, "properties_dir", lambda: folder)
    monkeypatch.setattr(schema, "known_keys", cache(schema.known_keys.__wrapped__))


@pytest.mark.usefixtures("with_a_distiller_called_imp")
def test_methods_are_told_apart_by_kind_and_name() -> None:
    assert defaults("imp", None)["distill_weight"] == 0.01 and defaults("none", "imp")["distill_weight"] == 0.5
    key = schema.known_keys()["distill_weight"]
    assert key.kinds == ["distiller"] and key.used_by("distiller", "imp") and not key.used_by("pruner", "imp")
    settings, warnings = settle({"pruner": "imp", "distill_weight": 2.0}, {}, HOST)
    assert settings.distill_weight == 0.01 and warnings == ["distill_weight has no effect without --distiller"]
    settings, warnings = settle({"pruner": "none", "distiller": "imp", "prune_rate": 0.1}, {}, HOST)
    assert warnings == ["prune_rate has no effect with --pruner=none"] and settings.distill_weight == 0.5
    settings, warnings = settle({"pruner": "imp", "distiller": "imp", "prune_rate": 0.1, "distill_weight": 3}, {}, HOST)
    assert (settings.prune_rate, settings.distill_weight, warnings) == (0.1, 3.0, [])
    text = schema.help_text()
    assert "--distiller=imp" in text and "distill_weight=0.5" in text.split("--distiller=imp")[1]
    assert "distill_weight" not in text.split("--pruner=imp")[1].split("--pruner=")[0]
