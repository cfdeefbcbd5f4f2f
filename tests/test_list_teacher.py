"""Ranked lists as teachers: files of users and items, best first, from any model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from teachers import first_rows, open_for, pupils_of, refusal, student_config

from recbole_prune.teachers.list_file import ListTeacher
from recbole_prune.teachers.sources import open_teacher

LENGTH = 25


class Listed:
    """Lists for the students of a dataset, as text."""

    def __init__(self, data: Path) -> None:
        self.pupils = pupils_of(student_config(data, None, distill_teacher_model="BPR"))
        self.users, self.items = (
            [str(token) for token in self.pupils.dataset.field2id_token[field][1:]] for field in ("user_id", "item_id")
        )
        draw = np.random.default_rng(3)
        self.lists = {user: [self.items[i] for i in draw.permutation(len(self.items))[:40]] for user in self.users}

    def tsv(self, lists: dict[str, list[str]] | None = None) -> str:
        chosen = self.lists if lists is None else lists
        return "".join("\t".join([user, *items]) + "\n" for user, items in chosen.items())

    def jsonl(self) -> str:
        records = [
            {"user": user, "items": items, "scores": [10.0 - rank - number / 100 for rank in range(len(items))]}
            for number, (user, items) in enumerate(self.lists.items())
        ]
        return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def listed(tiny_data: Path) -> Listed:
    return Listed(tiny_data)


def write(folder: Path, text: str, name: str = "lists.tsv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_lists_teach_rankings(tiny_data: Path, listed: Listed, tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, getattr(listed, suffix)(), f"lists.{suffix}")
    teacher = open_for(tiny_data, file, distill_list_length=LENGTH)
    assert isinstance(teacher, ListTeacher) and teacher.identity["kind"] == "lists"
    consumed, consumers = listed.pupils.consumed, listed.pupils.consumers
    kept, ranks = {}, {}
    for user, token in enumerate(listed.users, 1):
        items = [listed.items.index(item) + 1 for item in listed.lists[token]]
        kept[user] = [item for item in items if item not in consumed[user]]
        expected = kept[user][:LENGTH]
        assert teacher.items_of_users[user].tolist() == expected + [-1] * (LENGTH - len(expected))
        for rank, item in enumerate(kept[user] if suffix == "tsv" else items):
            ranks[user, item] = rank if suffix == "tsv" else rank + (user - 1) / 100
    for item in range(1, listed.pupils.item_count):
        users = sorted((ranks[user, item], user) for user in kept if item in kept[user])
        expected = [user for _, user in users][:LENGTH]
        assert teacher.users_of_items[item].tolist() == expected + [-1] * (LENGTH - len(expected))
        assert not set(expected) & consumers[item]
    if suffix == "jsonl":
        first = listed.lists[listed.users[0]].index(listed.items[teacher.items_of_users[1, 0] - 1])
        assert teacher.scores[1, 0] == 10 - first
    else:
        assert "lists without scores" in refusal(lambda: teacher.scores)
    for ask in (lambda: teacher.tables, lambda: teacher.widths, lambda: teacher.item_vectors(torch.ones(1).long())):
        assert "have no vectors" in refusal(ask)
    assert "no scores of other pairs" in refusal(lambda: teacher.batch_logits(first_rows(listed.pupils)))


@pytest.mark.parametrize(
    ("text", "name", "part"),
    [
        ("", "lists.tsv", "holds no lists"),
        ("\n\n", "lists.tsv", "holds no lists"),
        ("u\ti\n\nu\tj\n", "lists.tsv", "line 3: user 'u' has a list already, in line 1"),
        ("u\ti\tj\ti\n", "lists.tsv", "line 1: item 'i' stands twice"),
        ("u\n", "lists.tsv", "line 1: the list of user 'u' is empty"),
        ("v\ti\nu\ti\t\tj\n", "lists.tsv", "line 2 is malformed"),
        ("\ti\n", "lists.tsv", "line 1 is malformed"),
        ("{", "lists.jsonl", "line 1 is malformed: it is not valid JSON"),
        ('{"user": "u", "items": ["i"]}\n[]\n', "lists.jsonl", "line 2 is malformed: it must be an object"),
        ('{"user": "u", "item": ["i"]}', "lists.jsonl", "line 1 is malformed: it must be an object"),
        ('{"user": "u", "items": "i"}', "lists.jsonl", "user and items must be tokens"),
        ('{"user": true, "items": ["i"]}', "lists.jsonl", "user and items must be tokens"),
        ('{"user": "u", "items": []}', "lists.jsonl", "line 1: the list of user 'u' is empty"),
        ('{"user": "u", "items": ["i"], "scores": []}', "lists.jsonl", "a number for each of the 1 items"),
        ('{"user": "u", "items": ["i"], "scores": [NaN]}', "lists.jsonl", "must be finite numbers, but one is nan"),
        ('{"user": "u", "items": ["i"], "scores": ["1"]}', "lists.jsonl", "must be finite numbers, but one is '1'"),
        ('{"user": "u", "items": ["i"], "scores": [1e39]}', "lists.jsonl", "must be finite numbers, but one is 1e+39"),
        ('{"user": "u", "items": ["i", "j"], "scores": [1, 2]}', "lists.jsonl", "best first"),
    ],
)  # fmt: skip
def test_lines_that_are_no_lists(
    tiny_data: Path, tmp_path: Path, text: str, name: str, part: str, listed: Listed
) -> None:
    file = write(tmp_path, text, name)
    config = student_config(tiny_data, file)
    assert part in refusal(lambda: open_teacher(config, listed.pupils))


def test_bytes_that_are_no_text(tiny_data: Path, tmp_path: Path, listed: Listed) -> None:
    (tmp_path / "lists.tsv").write_bytes(b"u\ti\n\xff\ti\n")
    config = student_config(tiny_data, tmp_path / "lists.tsv")
    assert "line 2 is not valid UTF-8" in refusal(lambda: open_teacher(config, listed.pupils))


def test_unknown_tokens_are_counted_and_named(
    tiny_data: Path, tmp_path: Path, listed: Listed, caplog: pytest.LogCaptureFixture
) -> None:
    some = {"nobody": listed.items[:5], **listed.lists}
    some[listed.users[0]] = ["nothing", *listed.lists[listed.users[0]]]
    config = student_config(tiny_data, write(tmp_path, listed.tsv(some)))
    teacher = open_teacher(config, listed.pupils)
    said = [record.getMessage() for record in caplog.records]
    assert any(f"1 of the {len(some)} users in" in text and "'nobody'" in text for text in said)
    assert any("1 of the" in text and "'nothing'" in text for text in said)
    assert (teacher.items_of_users[1] != -1).any() and 0 not in teacher.items_of_users
    few = {listed.users[0]: listed.items[:5], "a": listed.items[:1]}
    config = student_config(tiny_data, write(tmp_path, listed.tsv(few)))
    text = refusal(lambda: open_teacher(config, listed.pupils))
    assert "1 of the 2 users" in text and "at most 10%" in text
    config = student_config(tiny_data, write(tmp_path, listed.tsv({listed.users[0]: [*listed.items[:5], "x"]})))
    assert "1 of the 6 items" in refusal(lambda: open_teacher(config, listed.pupils))


def test_users_without_lists(tiny_data: Path, tmp_path: Path, listed: Listed, caplog: pytest.LogCaptureFixture) -> None:
    user = listed.users[0]
    config = student_config(tiny_data, write(tmp_path, listed.tsv({user: listed.lists[user]})))
    teacher = open_teacher(config, listed.pupils)
    assert (teacher.items_of_users[2:] == -1).all()
    assert f"{len(listed.users) - 1} of {len(listed.users)} users have no list" in caplog.text
    mine = [listed.items[item - 1] for item in listed.pupils.consumed[1]]
    config = student_config(tiny_data, write(tmp_path, listed.tsv({user: mine})))
    assert "has no list with an item" in refusal(lambda: open_teacher(config, listed.pupils).items_of_users)
