"""PruneConfig: precedence, errors, hashes, copies, pickles."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.model.general_recommender import BPR

from recbole_prune.config import fingerprint, host, schema
from recbole_prune.config.paths import property_file
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.errors import ConfigError

MODEL, DATASET = "BPR", "ml-100k"


@pytest.fixture
def build(tmp_path: Path):
    """Build a config from a command line, a dict and the contents of yaml files."""

    def _build(*argv, model=MODEL, dataset=DATASET, files=(), **settings):
        names = []
        for number, content in enumerate(files):
            path = tmp_path / f"{number}.yaml"
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
            names.append(str(path))
        return PruneConfig(model, dataset, names or None, settings, argv)

    return _build


@pytest.fixture
def refuse(build):
    """Build a config that must be refused and return the message."""

    def _refuse(*argv, **arguments):
        with pytest.raises(ConfigError) as error:
            build(*argv, **arguments)
        message = str(error.value)
        assert "\n" not in message
        return message

    return _refuse


# ---- precedence ------------------------------------------------------------------------------------------------------


def test_precedence_of_our_settings(build):
    layers = [
        ({}, "overall.yaml", 0.2, 10),
        ({"recipe": "lth_mrs_clean"}, "recipe", 0.1, 29),
        ({"files": [{"recipe": "lth_mrs_clean", "prune_rate": 0.3}]}, "file", 0.3, 29),
        ({"files": [{"recipe": "lth_mrs_clean", "prune_rate": 0.3}, {"prune_rate": 0.4}]}, "later file", 0.4, 29),
    ]
    for arguments, layer, rate, rounds in layers:
        config = build(pruner="imp", **arguments)
        assert (config.settings.prune_rate, config.settings.prune_rounds) == (rate, rounds), layer
        assert config["prune_rate"] == rate
    files = layers[-1][0]["files"]
    assert build(pruner="imp", files=files, prune_rate=0.5).settings.prune_rate == 0.5
    both = build("--prune_rate=0.6", pruner="imp", files=files, prune_rate=0.5)
    assert both.settings.prune_rate == both["prune_rate"] == 0.6
    assert both.settings.explicit == {"pruner", "recipe", "prune_rate"}


def test_pruner_yaml_lies_over_overall_yaml_and_below_the_user(build):
    assert build().settings.prune_allocation == "global"
    assert build(pruner="magprune").settings.prune_allocation == "tensor"
    assert build("--pruner=magprune", "--prune_allocation=global").settings.prune_allocation == "global"


def test_a_recipe_lies_over_recboles_defaults_and_below_the_user(build):
    config = build("--recipe=lth_mrs", "--stopping_step=3", files=[{"learning_rate": 0.5}], topk=5)
    assert config["embedding_size"] == 32 and config["epochs"] == 1000 and config["metrics"] == ["Recall", "NDCG"]
    assert (config["stopping_step"], config["learning_rate"], config["topk"]) == (3, 0.5, [5])
    assert config.settings.pruner == "imp" and config.settings.prune_parity == "official"
    assert "TEST" in config.settings.recipe_notice
    assert config.settings.explicit == {"recipe"} and config.warnings == ()
    assert build("--recipe=lth_mrs", "--pruner=random").warnings == (), "the recipe's parity is not the user's"


@pytest.mark.parametrize("distiller", ["de_rrd", "rrd", "ir_rrd", "phr", "ftd", "htd"])
def test_a_recipe_of_a_distiller_states_the_published_weights_for_means(distiller, build):
    """Sums of the official code, with weight decay 1e-3, are means here (methods/distillation_latent.md, 1.3)."""
    config = build(f"--recipe={distiller}_citeulike")
    teacher = config.settings.distill_teacher_settings
    assert config.warnings == () and (config.settings.distiller, config.settings.pruner) == (distiller, "none")
    assert (config["embedding_size"], teacher["embedding_size"]) == (20, 200)
    for given in (config, teacher):
        assert given["weight_decay"] == pytest.approx(1e-3 / given["train_batch_size"])
        assert (given["learning_rate"], given["train_batch_size"]) == (1e-3, 1024)
    ranks_all = distiller in ("ftd", "htd")
    assert config["eval_args"]["mode"] == dict.fromkeys(("valid", "test"), "full" if ranks_all else "uni499")
    assert config["valid_metric"] == ("Recall@50" if ranks_all else "Hit@5")


def test_the_recipe_of_concf_is_the_guides(build):
    config = build("--recipe=concf_citeulike")
    assert config.warnings == () and config["weight_decay"] == pytest.approx(1e-5 / config["train_batch_size"])
    assert (config["embedding_size"], config["learning_rate"], config["epochs"]) == (64, 1e-2, 200)
    assert config["eval_args"]["split"] == {"RS": [0.6, 0.2, 0.2]} and config["valid_metric"] == "Recall@50"


def test_the_recipe_of_the_chain_is_that_of_its_distiller_with_a_pruner(build):
    """Split, batches, teacher and weights of ir_rrd_citeulike; half of the entries go, and int8 is stored."""
    chain, taught = build("--recipe=hybrid_citeulike"), build("--recipe=ir_rrd_citeulike")
    assert chain.warnings == () and (chain.settings.pruner, chain.settings.distiller) == ("imp", "ir_rrd")
    assert (chain.settings.prune_target_sparsity, chain.settings.prune_rounds) == (0.5, 1)
    assert chain.settings.export_values == "int8"
    differing = ("pruner", "epochs", "eval_step", "export_values", "distill_item_batch")
    files = (property_file("recipe", f"{name}_citeulike") for name in ("hybrid", "ir_rrd"))
    own, parts = (yaml.safe_load(file.read_text()) for file in files)
    same = [name for name in parts if name not in differing]
    assert [own[name] for name in same] == [parts[name] for name in same]
    assert chain.settings.distill_teacher_settings == taught.settings.distill_teacher_settings


@pytest.mark.parametrize("model", ["cdae", "convncf", "lightgcn", "multivae", "neumf", "ultragcn"])
def test_a_recipe_of_dsl_states_the_masks_and_the_growth_of_the_paper(model):
    """Whatever the defaults of dsl are: random masks, and the gradients of the batch just trained on."""
    recipe = yaml.safe_load(property_file("recipe", f"dsl_{model}").read_text())
    settings = {name: recipe[name] for name in ("prune_init", "prune_growth", "prune_gradient_window")}
    assert settings == {"prune_init": "exact", "prune_growth": "gradient", "prune_gradient_window": 1}


def test_a_recipes_notice_goes_with_its_selection(build):
    assert build("--recipe=lth_mrs", "--prune_select=valid").settings.recipe_notice is None
    config = build("--recipe=lth_mrs_clean", "--prune_select=test")
    assert config.settings.recipe_notice is None and "leak" in config.warnings[0]


def test_recboles_settings_come_out_as_in_recbole(build, monkeypatch):
    words = ["--learning_rate=1e-2", "--eval_args={'mode': 'uni100'}", "--gpu_id="]
    monkeypatch.setattr(sys, "argv", ["x", *words])
    plain = Config("LightGCN", DATASET, config_dict={"topk": "[5,10]", "reg_weight": 1})
    ours = PruneConfig("LightGCN", DATASET, config_dict={"topk": "[5,10]", "reg_weight": 1}, words=words)
    for name, value in plain.final_config_dict.items():
        assert ours[name] == value, name
    assert set(ours.final_config_dict) - set(plain.final_config_dict) == set(schema.known_keys())


def test_our_values_are_never_evaluated(build, tmp_path):
    target = tmp_path / "made"
    config = build("--output_dir=1/0", prune_include="__import__('os').mkdir('made')")
    assert config.settings.output_dir == "1/0" and not target.exists()


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--prunner=imp"], ["prunner", "did you mean --pruner?"]),
        (["--output_dri=x"], ["output_dri", "did you mean --output_dir?"]),
        (["--prune_foo=1"], ["prune_foo is not a setting"]),
        (["--distill_foo=1"], ["distill_foo is not a setting"]),
        (["--pruner", "imp"], ["write --pruner=imp"]),
        (["--pruner"], ["write --pruner=VALUE"]),
        (["--dry_run"], ["write --dry_run=True"]),
        (["-pruner=imp"], ["write --pruner=imp"]),
        (["pruner=imp"], ["write --pruner=imp"]),
        (["--prunner", "imp"], ["did you mean --pruner?"]),
        (["--output_dir=a=b"], ["no value with '=' in it"]),
        (["--pruner=impp"], ["pruner=impp", "magprune", "did you mean pruner=imp?"]),
        (["--pruner=imp", "--prune_rate=1.5"], ["prune_rate=1.5", "0 < prune_rate < 1"]),
        (["--pruner=imp", "--prune_rounds=True"], ["prune_rounds=True", "an int"]),
        (["--pruner=imp", "--prune_rewind=late"], ["prune_rewind=late needs prune_rewind_epoch"]),
        (["--pruner=imp", "--prune_rewind=late", "--prune_rewind_epoch=5", "--epochs=5"], ["below epochs=5"]),
        (["--recipe=lth"], ["recipe=lth", "lth_mrs"]),
        (["--seed=1", "--seed=2"], ["--seed is given twice, as 1 and as 2"]),
        (["--learning_rate=1/0"], ["RecBole refuses", "division by zero"]),
        (["--train_neg_sample_args=3"], ["RecBole refuses", "should be a dict"]),
        (["--metrics=Recal"], ["There is no metric named 'Recal'"]),
    ],
)
def test_bad_words_of_the_command_line(refuse, argv, parts):
    message = refuse(*argv)
    assert all(part in message for part in parts), message


def test_bad_settings_of_dict_and_file(refuse):
    assert "did you mean --prune_rewind?" in refuse(prune_rewnd="lr")
    assert "did you mean --fresh?" in refuse(files=[{"fersh": True}])
    assert "prune_rate=[0.1]" in refuse(pruner="imp", files=[{"prune_rate": [0.1]}])


def test_bad_files(refuse, build, tmp_path):
    with pytest.raises(ConfigError, match="config file missing.yaml cannot be read: No such file"):
        PruneConfig(MODEL, DATASET, ["missing.yaml"])
    assert "0.yaml is not valid yaml" in refuse(files=["a: [1\nb: 2"])
    assert "0.yaml must hold 'key: value' lines" in refuse(files=[""])
    assert "0.yaml must hold 'key: value' lines" in refuse(files=["- a\n- b\n"])


def test_unknown_models_and_datasets(refuse):
    assert "did you mean BPR?" in refuse(model="bpr")
    assert "did you mean LightGCN" in refuse("--model=LigtGCN", model=None)
    assert "model need to be specified" in refuse(model=None)
    assert "dataset need to be specified" in refuse(dataset=None)
    assert "did you mean ml-100k" in refuse(dataset="ml100k")
    Path("sets/my-shop").mkdir(parents=True)
    message = refuse("--data_path=sets", dataset="my-shpo")
    assert "no folder sets/my-shpo" in message and "did you mean my-shop" in message


def test_a_model_whose_package_is_missing(refuse, monkeypatch):
    def get_model(name):
        raise ModuleNotFoundError("No module named 'faiss'")

    monkeypatch.setattr("recbole.config.configurator.get_model", get_model)
    assert refuse(model="NCL") == "model NCL cannot be imported: No module named 'faiss'"


def test_known_datasets_pass(build):
    Path("sets/my-shop").mkdir(parents=True)
    assert build("--data_path=sets", dataset="my-shop")["data_path"] == "sets/my-shop"
    assert build(dataset="ml-1m").dataset == "ml-1m", "RecBole can download it"


def test_cross_entropy_with_the_default_sampling_keeps_recboles_error(refuse, build):
    message = refuse(model="SASRec")
    assert "should be None when the loss_type is CE" in message and "--train_neg_sample_args=None" in message
    assert build("--train_neg_sample_args=None", model="SASRec")["loss_type"] == "CE"


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_names_that_nobody_knows_are_warned_about(build, caplog):
    with caplog.at_level(logging.WARNING):
        config = build("--learning_rat=0.1", foo=1)
    assert [record.message for record in caplog.records] == list(config.warnings)
    assert "learning_rat is known neither to RecBole nor to recbole_prune; did you mean learning_rate?" in caplog.text
    assert "setting foo is known neither" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "alias_of_user_id",
        "neg_sampling",
        "gpu_id",
        "nproc",
        "config_files",
        "lgb_params",
        "numerical_features",
        "n_layers",
    ],
)
def test_names_that_recbole_knows_are_not(name):
    assert host.is_known_setting(name)


class Scorer(BPR):
    """A user's own model; it reads a setting that resembles one of ours."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.output_dim = config["output_dim"]


def test_settings_of_a_users_own_model_are_known(build, refuse):
    assert build("--output_dim=3", model=Scorer).warnings == ()
    assert "did you mean --output_dir?" in refuse("--output_dim=3")


def test_model_names_are_recboles():
    names = host.model_names()
    yaml_names = {file.stem.lower() for file in (host.recbole_folder() / "properties/model").glob("*.yaml")}
    assert yaml_names <= {name.lower() for name in names} and len(names) == len(set(names)) > 80
    assert {"BPR", "LightGCN", "SASRec", "CKE", "FM", "XGBoost"} <= set(names)


# ---- hashes ----------------------------------------------------------------------------------------------------------


def test_defaults_given_explicitly_do_not_change_the_hash(build):
    plain = build(pruner="imp")
    assert len(plain.run_hash) == 10 and int(plain.run_hash, 16) >= 0
    said = build(
        "--prune_rate=0.20", "--prune_rounds=10", "--topk=10", "--learning_rate=1e-3", "--weight_decay=0",
        "--eval_args={'order': 'RO', 'mode': 'full', 'split': {'RS': [0.8, 0.1, 0.1]}, 'group_by': 'user'}",
        "--train_neg_sample_args={'sample_num': 1, 'distribution': 'uniform'}", "--clip_grad_norm=None",
        pruner="imp", prune_include=[], epochs=300, metrics=["Recall", "MRR", "NDCG", "Hit", "Precision"],
    )  # fmt: skip
    assert said.run_hash == plain.run_hash


def test_settings_that_change_no_result_do_not_change_the_hash(build):
    plain = build(pruner="imp")
    said = build(
        "--show_progress=False", "--state=ERROR", "--gpu_id=", "--use_gpu=False", "--checkpoint_dir=x",
        "--output_dir=y", "--fresh=True", "--dry_run=True", "--export_ticket=2", "--export_values=int8",
        "--export_vectors=True", "--prune_save_interval=5", "--prune_keep_checkpoints=none",
        "--prune_keep_moments=True", "--log_wandb=False", "--wandb_project=p", "--data_path=z",
        "--recipe_notice=n",
        pruner="imp",
    )  # fmt: skip
    assert said.run_hash == plain.run_hash and said.base_hash == plain.base_hash


def test_what_matters_changes_the_hash(build):
    hashes = {
        build(pruner="imp", **settings).run_hash
        for settings in (
            {}, {"prune_rate": 0.1}, {"prune_rounds": 3}, {"prune_rewind": "none"}, {"prune_exclude": ["a"]},
            {"prune_parity": "official"}, {"prune_target_sparsity": 0.5}, {"prune_select": "test"}, {"seed": 1},
            {"epochs": 5}, {"learning_rate": 0.1}, {"eval_args": {"mode": "uni100"}}, {"embedding_size": 8},
        )
    }  # fmt: skip
    assert len(hashes) == 13


def test_the_hash_does_not_depend_on_order_or_source(build):
    one = build("--epochs=5", pruner="imp", prune_rate=0.1, seed=1)
    other = build("--seed=1", "--prune_rate=.1", files=[{"pruner": "imp", "epochs": 5}])
    assert one.run_hash == other.run_hash != build(pruner="imp").run_hash


def test_numpys_numbers_are_pythons(build):
    def with_numbers(whole, real):
        half, split = real(0.5), {"split": {"RS": [real(0.5), real(0.25), real(0.25)]}}
        settings = {"epochs": whole(3), "learning_rate": half, "topk": [whole(5)], "eval_args": split}
        return build(pruner="imp", prune_rate=half, **settings)

    plain, said = with_numbers(int, float), with_numbers(np.int64, np.float32)
    assert said.run_hash == plain.run_hash
    assert json.dumps(said.plain_settings()) == json.dumps(plain.plain_settings())
    assert type(said["epochs"]) is int and type(said["learning_rate"]) is float and type(said["topk"][0]) is int


def test_a_recipe_counts_by_its_contents(build):
    recipe = build(recipe="lth_mrs")
    contents = yaml.load(property_file("recipe", "lth_mrs").read_text(), Loader=recipe.yaml_loader)
    assert build(files=[contents]).run_hash == recipe.run_hash != build(recipe="lth_mrs_clean").run_hash


def test_a_new_setting_with_a_default_does_not_change_the_hash(build, monkeypatch):
    before = build(pruner="imp", prune_rate=0.1, seed=3)
    new = schema.Key(
        "prune_new", 1, "int", False, "", "something new", "Pruning", True, "the pruning", {("pruner", "imp"): 2}
    )
    with_new = {**schema.known_keys(), "prune_new": new}
    monkeypatch.setattr(schema, "known_keys", lambda: with_new)
    after = build(pruner="imp", prune_rate=0.1, seed=3)
    assert after.settings.prune_new == 2 and after.run_hash == before.run_hash
    assert build(pruner="imp", prune_rate=0.1, seed=3, prune_new=1).run_hash != before.run_hash


def test_a_method_whose_defaults_changed_has_other_runs(build):
    """Folders of the defaults of before are not found, for their settings differed from theirs by nothing."""
    now = build(pruner="dsl", seed=3)
    assert now.run_hash != fingerprint.digest({"seed": 3})
    assert build(pruner="rigl", seed=3).run_hash == fingerprint.digest({"seed": 3})
    assert now.base_hash == build(pruner="rigl", seed=3).base_hash, "the dense training is the same"


def test_a_setting_without_effect_does_not_change_the_hash(build):
    assert build(pruner="magprune", prune_rewind="lr").run_hash == build(pruner="magprune").run_hash


def test_the_base_hash_is_shared_where_the_dense_training_is_the_same(build):
    dense = build(pruner="none", seed=3)
    assert dense.run_hash == dense.base_hash
    assert build(pruner="imp", prune_rate=0.1, prune_rewind="none", seed=3).base_hash == dense.base_hash
    assert build(pruner="magprune", prune_target_sparsity=0.5, seed=3).base_hash == dense.base_hash
    for change in ({"prune_select": "test"}, {"prune_l2_weight": 0.1}, {"prune_user_uniform": True},
                   {"prune_lr_schedule": "cosine"}, {"prune_lr_warmup": 3}, {"seed": 4}):  # fmt: skip
        assert build(**{"seed": 3, **change}).base_hash != dense.base_hash, change


# ---- rebuilding, copies, pickles -------------------------------------------------------------------------------------


def rich(build):
    return build(
        "--prune_target_sparsity=0.9", "--gpu_id=", "--config_files=a.yaml", "--fresh=True", recipe="lth_mrs_clean",
        prune_parity="exact", prune_include="*user*", topk=[5, 10],
        files=[{"user_inter_num_interval": "[0,90]", "eval_args": {"mode": "uni100"}}],
    )  # fmt: skip


def test_plain_settings_rebuild_the_config(build, monkeypatch):
    config = rich(build)
    plain = config.plain_settings()
    assert not {"config_files", "fresh", "local_rank"} & set(plain)
    monkeypatch.setattr(sys, "argv", ["x", "--epochs=1", "--prunner=imp", "--model=FM"])
    again = PruneConfig.from_plain_settings(json.loads(json.dumps(plain)))
    assert again.run_hash == config.run_hash and again.base_hash == config.base_hash
    assert {**again.settings} == {**config.settings, "fresh": False}
    assert again["epochs"] == 1000 and again["user_inter_num_interval"] == "[0,90]"
    assert again.plain_settings() == plain and again.warnings == ()
    monkeypatch.setattr(sys, "argv", ["x"])
    Path("plain.yaml").write_text(yaml.safe_dump(plain))
    recbole = Config(config_file_list=["plain.yaml"])
    for name in recbole.final_config_dict:
        if name not in schema.known_keys():
            assert recbole[name] == config[name] or name == "config_files", name


def test_plain_settings_hold_in_any_working_directory(build):
    """Every path that RecBole reads; what is no path, or empty, stays as it is."""
    here = os.getcwd()
    Path("dataset/shop").mkdir(parents=True)
    assert build(dataset="shop").plain_settings()["data_path"] == f"{here}/dataset"
    assert "data_path" not in build().plain_settings(), "RecBole finds the bundled data itself"
    said = {
        "data_path": "dataset/", "checkpoint_dir": "saved", "dataset_save_path": "/abs/set.pth", "pre_model_path": "",
        "mf_pretrain_path": "../mf.pth", "dataloaders_save_path": None, "load_col": {"inter": ["user_id", "item_id"]},
    }  # fmt: skip
    plain = build(dataset="shop", model="NeuMF", **said).plain_settings()
    assert {name: plain[name] for name in said} == {
        **said, "data_path": f"{here}/dataset", "checkpoint_dir": f"{here}/saved",
        "mf_pretrain_path": os.path.join(os.path.dirname(here), "mf.pth"),
    }  # fmt: skip
    assert build(dataset="shop", data_path=f"{here}/dataset").run_hash == build(dataset="shop").run_hash


def test_paths_of_recbole_are_known():
    """Settings whose names say that they are paths, in the property files of RecBole."""
    read = set()
    for file in (host.recbole_folder() / "properties").rglob("*.yaml"):
        read |= set(re.findall(r"^(\w+(?:_path|_dir)|warm_up)\s*:", file.read_text(), re.MULTILINE))
    assert read == fingerprint.PATHS


def test_with_changes_is_a_copy(build):
    config = build(pruner="small_dense", eval_args={"mode": "full"})
    smaller = config.with_changes(embedding_size=8)
    assert isinstance(smaller, PruneConfig) and smaller["embedding_size"] == smaller.embedding_size == 8
    assert config["embedding_size"] == 64 and smaller.run_hash != config.run_hash
    assert smaller.plain_settings()["embedding_size"] == 8
    smaller["eval_args"]["mode"] = None
    assert config["eval_args"]["mode"] is not None, "nothing is shared"
    for name in ("prune_rate", "model"):
        with pytest.raises(ConfigError, match=f"{name} cannot be changed"):
            config.with_changes(**{name: 1})


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_stay_what_they_are(build, duplicate):
    config = build("--prune_rate=0.1", pruner="imp")
    twin = duplicate(config)
    assert type(twin) is PruneConfig and twin is not config
    assert twin.settings == config.settings and twin.settings.explicit == config.settings.explicit
    assert twin.run_hash == config.run_hash and twin.final_config_dict == config.final_config_dict


def test_it_pickles_as_recboles_config(build):
    config = rich(build)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(config, protocol=protocol)
        assert b"recbole_prune" not in data
        loaded = pickle.loads(data)
        assert type(loaded) is Config and loaded.final_config_dict == config.final_config_dict


def run(program: str) -> subprocess.CompletedProcess:
    """Run Python code in a new process that finds this package where this one found it."""
    path = str(Path(host.__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_checkpoints_load_where_this_package_is_missing(build):
    config = build("--prune_rate=0.1", pruner="imp", prune_include=["a"])
    torch.save({"config": config}, "checkpoint.pth", pickle_protocol=4)
    program = (
        "import sys; sys.modules['recbole_prune'] = None\n"
        "import torch; config = torch.load('checkpoint.pth', weights_only=False)['config']\n"
        "assert type(config).__module__ == 'recbole.config.configurator', type(config)\n"
        "assert not [name for name in sys.modules if name.startswith('recbole_prune.')]\n"
        "print(config['model'], config['prune_rate'], config.device)\n"
    )
    done = run(program)
    if done.returncode and "No module named 'kmeans_pytorch'" in run("import recbole.model.general_recommender").stderr:
        pytest.skip("RecBole 1.2.0 cannot import its models without kmeans_pytorch or our patches")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["BPR", "0.1", str(config["device"])]


def test_the_schema_needs_neither_torch_nor_recbole():
    program = (
        "import sys; from recbole_prune.config import schema, settings; schema.help_text()\n"
        "assert not {'torch', 'recbole', 'numpy'} & set(sys.modules)"
    )
    done = run(program)
    assert done.returncode == 0, done.stderr
