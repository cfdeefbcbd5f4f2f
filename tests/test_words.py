"""The words of a command line: launcher options as written, a typo answered before RecBole is imported."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recbole_prune.cli import main
from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.config.words import launch
from recbole_prune.errors import ConfigError

TYPOS = [
    (["--embeding_size=32"], "embeding_size is not a setting of RecBole; did you mean --embedding_size?"),
    (["--epoch=3"], "did you mean --epochs?"),
    (["--model=LightGCN", "--n_layer=2"], "did you mean --n_layers?"),
    (["--prunner=imp"], "did you mean --pruner?"),
    (["--pruner=impp"], "did you mean pruner=imp?"),
    (["--model=LigtGCN"], "did you mean LightGCN"),
    (["--dataset=ml100k"], "did you mean ml-100k"),
    (["--valid_metric=Recal@10"], "did you mean Recall?"),
    (["--metrics=['Recal']"], "did you mean Recall?"),
    (["--topk=ten"], "topk=ten is not allowed"),
    (["--embedding_size=abc"], "embedding_size=abc is not allowed: RecBole takes a whole number, at least 1"),
    (["--worker=abc"], "worker=abc is not allowed"),
    (["--epochs=0"], "epochs=0 is not allowed"),
    (["--use_gpu=maybe"], "use_gpu=maybe is not allowed: RecBole takes True or False"),
    (["--gpu_id=abc"], "gpu_id=abc is not allowed"),
    (["--load_col=foo"], "load_col=foo is not allowed"),
    (["--nproc=0"], "nproc=0 is not allowed: RecBole takes a whole number of processes, at least 1"),
    (["--nproc", "two"], "nproc=two is not allowed"),
    (["--world_size=0"], "world_size=0 is not allowed"),
    (["--nproc=2", "--world_size=2", "--group_offset=1"], "world_size=2 is not allowed"),
    (["--nproc=2", "--group_offset=-1"], "group_offset=-1 is not allowed"),
    (["--nproc=2", "--port=70000"], "port=70000 is not allowed"),
    (["--local_rank=1"], "local_rank=1 is not allowed"),
    (["--data_path=a=b"], "no value with '=' in it"),
    (["--config_files", "a.yaml", "b.yaml"], "config file a.yaml cannot be read"),
    (["--seed=1", "b.yaml"], "b.yaml is no setting: write --key=value"),
    (["--model=BPR", "--model=FM"], "--model is given twice, as BPR and as FM"),
    (["--model"], "--model/-m: expected one argument"),
]


@pytest.mark.parametrize(("words", "message"), TYPOS)
def test_typos_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("command", ["run", "compare", "bench"])
def test_a_typo_is_answered_before_recbole_is_imported(command: str) -> None:
    before = [command, "train"] if command == "bench" else [command]
    typos = [[*before, *words] for words, _ in TYPOS if command != "compare" or "--pruner" not in str(words)]
    code = (
        "import sys; from recbole_prune.cli import main\n"
        f"assert [main(words) for words in {typos!r}] == [2] * {len(typos)}\n"
        "assert not {'recbole', 'pandas', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(typos)


def test_words_that_are_right_pass() -> None:
    words = ["--topk=[5,10]", "--learning_rate=10**-3", "--user_inter_num_interval=[5,10]", "--gpu_id=", "--foo=1"]
    words += ["--valid_metric=Recall@5", "--eval_args={'mode': 'uni100'}", "--pruner=imp", "--data_path=3"]
    found = launch(["-m", "LightGCN", "--n_layers=2", *words])
    assert found.model == "LightGCN" and found.dataset == "ml-100k" and found.files is None
    config = PruneConfig(found.model, found.dataset, found.files, words=found.words)
    assert config["learning_rate"] == 10**-3 and config["topk"] == [5, 10]
    assert config["user_inter_num_interval"] == [5, 10], "as RecBole's own command line gives it"
    assert config.warnings == ("the setting foo is known neither to RecBole nor to recbole_prune",)


def test_a_model_and_a_dataset_that_only_a_file_names_are_taken() -> None:
    Path("dataset/shop").mkdir(parents=True)
    Path("a.yaml").write_text("model: LightGCN\ndataset: shop\nepochs: !!int 3\n")
    Path("b.yaml").write_text("dataset: ml-100k\n")
    assert launch(["--config_files=a.yaml"])[:2] == ("LightGCN", "shop")
    assert launch(["--config_files=a.yaml b.yaml"])[:2] == ("LightGCN", "ml-100k"), "the later file first"
    assert launch(["--config_files=a.yaml", "-m", "FM"])[:2] == ("FM", "shop"), "the command line goes before files"
    assert launch([])[:2] == ("BPR", "ml-100k"), "as RecBole's launcher"
    found = launch(["--config_files=a.yaml"])
    config = PruneConfig(found.model, found.dataset, found.files, words=found.words)
    assert (config["model"], config["dataset"], config["epochs"]) == ("LightGCN", "shop", 3)


def test_config_file_list_is_another_name_of_config_files() -> None:
    Path("a.yaml").write_text("epochs: 3\n")
    Path("b.yaml").write_text("seed: 4\n")
    both = launch(["--config_files=a.yaml b.yaml"])
    assert both.files == ["a.yaml", "b.yaml"]
    assert launch(["--config_file_list=a.yaml b.yaml"]) == both
    assert launch(["--config_file_list=['a.yaml', 'b.yaml']"]) == both
    with pytest.raises(ConfigError, match="--config_files and --config_file_list are given, which mean the same"):
        launch(["--config_file_list=a.yaml", "--config_files=b.yaml"])


def test_misspelt_names_in_a_config_file_are_refused() -> None:
    Path("a.yaml").write_text("embeding_size: 32\n")
    with pytest.raises(ConfigError, match="did you mean --embedding_size?"):
        launch(["--config_files=a.yaml"])
    with pytest.raises(ConfigError, match="did you mean --embedding_size?"):
        PruneConfig("BPR", "ml-100k", ["a.yaml"])


def test_launcher_options_that_only_a_launcher_reads_are_warned_about() -> None:
    Path("a.yaml").write_text("config_file_list: [b.yaml]\n")
    in_file = PruneConfig("BPR", "ml-100k", ["a.yaml"], words=["--config_files=a.yaml"])
    in_words = PruneConfig("BPR", "ml-100k", words=["--config_files=a.yaml"])
    for config, name in ((in_file, "config_file_list"), (in_words, "config_files")):
        assert (
            len(config.warnings) == 1
            and config.warnings[0].startswith(f"{name}=")
            and "no effect" in config.warnings[0]
        )


def test_options_of_somebodys_own_program_are_no_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Its words reach the config too (run_recbole_prune reads them as RecBole does)."""
    with caplog.at_level(logging.WARNING):
        config = PruneConfig("BPR", "ml-100k", words=["--seeds=1,2", "--loudly", "--verbose"])
    assert "seeds is known neither" in config.warnings[-1] and "did you mean seed?" in config.warnings[-1]


def test_a_dry_run_of_compare_trains_nothing(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("recbole_prune.training.trainer.MaskAwareTrainer._train_epoch", trained)
    words = ["compare", "--pruners=static,dsl", "--sparsities=0.5", "--seeds=1,2", "--to=records.json"]
    words += ["--dataset=tiny", f"--data_path={tiny_data}", "--embedding_size=8", "--gpu_id=", "--dry_run=True"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.count("static on BPR / tiny") == printed.count("dsl on BPR / tiny") == 1
    assert not (tmp_path / "pruned").exists() and not (tmp_path / "records.json").exists()
