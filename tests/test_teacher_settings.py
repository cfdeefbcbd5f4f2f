"""Which teachers the settings of a run name, and with which settings those go that are trained first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from teachers import refusal, settings_of, student_config
from zoo import DATASET

from recbole_prune.config.prune_config import PruneConfig
from recbole_prune.distillers.teaching import teacher_configs


def test_a_distiller_has_one_teacher(timed_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "lists.tsv"
    file.write_text("1\t2\n")
    neither = refusal(lambda: student_config(timed_data, None))
    assert "distill_teacher" in neither and "distill_teacher_model" in neither
    both = refusal(lambda: student_config(timed_data, file, distill_teacher_model="BPR"))
    assert f"distill_teacher={file}" in both and "distill_teacher_model=BPR" in both
    assert "cannot go together" in refusal(
        lambda: student_config(timed_data, file, distill_teacher_settings={"seed": 1})
    )
    assert "did you mean LightGCN" in refusal(
        lambda: student_config(timed_data, None, distill_teacher_model="LightGCM")
    )
    for name in ("pruner", "model", "distill_teacher", "output_dir"):
        call = {"distill_teacher_model": "BPR", "distill_teacher_settings": {name: "x"}}
        assert f"{name} is none of" in refusal(lambda call=call: student_config(timed_data, None, **call))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"distill_teacher_models": ["BPR", "BPR"]}, ["distill_teacher_models=BPR,BPR", "names BPR twice"]),
        ({"distill_teacher_models": ["BPR", "LightGCM"]}, ["distill_teacher_models=LightGCM", "did you mean LightGCN"]),
        ({"distill_teacher_models": ["BPR"], "distill_teacher_model": "BPR"}, ["cannot go together"]),
        (
            {"distill_teacher_models": ["BPR"], "distill_teacher": "a.pth"},
            ["distill_teacher=a.pth", "cannot go together"],
        ),
        (
            {"distill_teacher_models": ["BPR", "NeuMF"], "distill_teacher_settings": {"embedding_size": 8}},
            ["embedding_size is none of distill_teacher_models=BPR,NeuMF", "go by their names"],
        ),
        (
            {"distill_teacher_models": ["BPR", "NeuMF"], "distill_teacher_settings": {"BPR": 8}},
            ["that of BPR must be a dict"],
        ),
        (
            {"distill_teacher_models": ["BPR", "NeuMF"], "distill_teacher_settings": {"BPR": {"pruner": "imp"}}},
            ["pruner is none of the teacher's own settings"],
        ),
        ({"distill_teacher_models": "[1]"}, ["distill_teacher_models=[1] is not allowed", "a list of words"]),
    ],
)
def test_settings_of_several_teachers(timed_data: Path, given: dict[str, Any], said: list[str]) -> None:
    text = refusal(lambda: student_config(timed_data, None, **given))
    assert all(part in text for part in said), text


def test_paths_that_are_no_teacher(timed_data: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.pth").write_bytes(b"")
    (tmp_path / "teacher.txt").write_bytes(b"")
    (tmp_path / "run").mkdir()
    near = refusal(lambda: student_config(timed_data, tmp_path / "teachr.pth"))
    assert "no such file" in near and f"did you mean {tmp_path / 'teacher.pth'}" in near
    for name in ("teacher.txt", "run"):
        assert "is no teacher: it must be" in refusal(lambda name=name: student_config(timed_data, tmp_path / name))
    (tmp_path / "run" / "tickets.jsonl").write_text("")
    assert "exported no ticket yet" in refusal(lambda: student_config(timed_data, tmp_path / "run"))
    assert "is no teacher" in refusal(lambda: student_config(timed_data, tmp_path / "run" / "tickets.jsonl"))


def test_a_run_is_known_by_what_its_teacher_holds(
    timed_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, other = (tmp_path / name for name in ("one.tsv", "two.tsv", "other.tsv"))
    for file, text in ((one, "1\t2\n"), (two, "1\t2\n"), (other, "1\t3\n")):
        file.write_text(text)
    first, second, third = (student_config(timed_data, file) for file in (one, two, other))
    assert first.run_hash == second.run_hash != third.run_hash
    assert first.base_hash == second.base_hash != third.base_hash, "no dense model is shared between them"
    plain = student_config(timed_data, None, distill_teacher_model="BPR")
    wider = {"distill_teacher_model": "BPR", "distill_teacher_settings": {"embedding_size": 200}}
    assert len({plain.run_hash, student_config(timed_data, None, **wider).run_hash, first.run_hash}) == 3
    monkeypatch.chdir(tmp_path)
    relative = student_config(timed_data, Path("one.tsv"))
    assert relative.plain_settings()["distill_teacher"] == [str(one)] and relative.run_hash == first.run_hash
    one.write_text("1\t4\n")
    assert student_config(timed_data, one).run_hash != first.run_hash
    one.unlink()
    assert PruneConfig.from_plain_settings(first.plain_settings()).settings.distill_teacher == [str(one)]


def teacher_config(student: PruneConfig) -> PruneConfig:
    [found] = teacher_configs(student)
    return found


def test_the_settings_of_a_teacher_that_is_trained_first(timed_data: Path) -> None:
    given = {"distill_teacher_model": "LightGCN", "distill_teacher_settings": {"n_layers": 1}}
    student = student_config(
        timed_data, None, embedding_size=4, learning_rate=0.5, seed=7, prune_select="test", **given
    )
    teacher = teacher_config(student)
    assert (teacher["model"], teacher.settings.pruner, teacher.settings.distiller) == ("LightGCN", "none", None)
    assert (teacher["embedding_size"], teacher["learning_rate"], teacher["n_layers"]) == (64, 0.001, 1)
    assert teacher.settings.prune_select == "test" and teacher.settings.output_dir == student.settings.output_dir
    for name in ("seed", "eval_args", "load_col", "user_inter_num_interval", "data_path", "topk", "metrics", "dataset"):
        assert teacher[name] == student[name], name
    twin = teacher_config(student_config(timed_data, None, embedding_size=8, seed=7, prune_select="test", **given))
    assert twin.run_hash == teacher.run_hash, "students of one teacher share it"
    own = {**settings_of("BPR", timed_data), "seed": 7, "prune_select": "test", "n_layers": 1}
    alone = {name: value for name, value in own.items() if name not in ("embedding_size", "epochs", "train_batch_size")}
    assert PruneConfig("LightGCN", DATASET, config_dict=alone).run_hash == teacher.run_hash, "as does a run of its own"
    wrong = {**given, "distill_teacher_settings": {"n_layer": 1}}
    text = refusal(lambda: teacher_config(student_config(timed_data, None, **wrong)))
    assert "distill_teacher_settings={'n_layer': 1}" in text and "did you mean --n_layers" in text
    sequential = student_config(timed_data, None, "SASRec", **given)
    assert teacher_config(sequential)["eval_args"] == sequential["eval_args"]
    ce = {"distill_teacher_model": "SASRec", "distill_teacher_settings": {"n_layers": 1}}
    assert teacher_config(student_config(timed_data, None, **ce))["train_neg_sample_args"]["distribution"] == "none"
    graph = teacher_config(student_config(timed_data, None, distill_teacher_model="KGAT"))["load_col"]
    assert set(graph) == {"inter", "kg", "link"} and graph["inter"] == student["load_col"]["inter"]
    fitted = refusal(lambda: teacher_config(student_config(timed_data, None, distill_teacher_model="EASE")))
    assert "not trained by gradient" in fitted


def test_who_teaches_labels_learns_labels(timed_data: Path) -> None:
    """Its negatives would else be drawn, as usual, and it would know which pairs there are, not how they are rated."""
    labels = {"train_neg_sample_args": None, "threshold": {"rating": 4}, "metrics": ["MSE"], "valid_metric": "MSE"}
    labels["eval_args"] = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"}

    def drawn_from(student: str, teacher: str, **given: Any) -> str:
        changes = {"distiller": "sad", "distill_teacher_model": teacher, **given}
        found = teacher_config(student_config(timed_data, None, student, **changes))
        return str(found["train_neg_sample_args"]["distribution"])

    assert drawn_from("NeuMF", "NeuMF", **labels) == "none"
    assert drawn_from("NeuMF", "NeuMF") == "uniform"
    assert drawn_from("NeuMF", "BPR", **labels) == "uniform"  # it compares pairs
    assert drawn_from("SASRec", "NeuMF") == "uniform"  # whose own loss has all items as negatives
    assert drawn_from("ENMF", "NeuMF", train_neg_sample_args=None) == "uniform"  # it draws none, and reads no labels
    own = {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1}}
    assert drawn_from("NeuMF", "NeuMF", **labels, distill_teacher_settings=own) == "popularity"
