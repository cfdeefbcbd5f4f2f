"""Several teachers together: what they rank, in which ids, and what they cannot say."""

from __future__ import annotations

from math import exp
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from marks import slow_but
from teachers import Beginner, Checkpoints, open_for, refusal, student_config

from recbole_prune.data.used_ids import UsedIds
from recbole_prune.run.store import RunFolder
from recbole_prune.teachers.base import Basics, Teacher
from recbole_prune.teachers.ensemble import Ensemble, consensus
from recbole_prune.teachers.store import ListStore

LENGTH = 25


def padded(*lists: list[int], width: int = 5) -> np.ndarray:
    return np.array([[*items, *[-1] * (width - len(items))] for items in lists], np.int32)


def test_the_consensus_by_hand() -> None:
    one, two = padded([5, 3, 7], [], [4, 2]), padded([3, 9], [], [2, 4])
    ids, scores = consensus([one, two], 3)
    assert ids.tolist() == [[3, 5, 9], [-1, -1, -1], [2, 4, -1]], "lower ids first among equal ones"
    both = 1 + exp(-0.1)
    expected = [[both, 1, exp(-0.1)], [0, 0, 0], [both, both, 0]]
    assert scores == pytest.approx(np.array(expected, np.float32)) and ids.dtype == np.int32
    assert consensus([one, two], 4)[0][0].tolist() == [3, 5, 9, 7]
    assert consensus([one, two], 4, cut=1)[0][0].tolist() == [3, 5, -1, -1], "what stands behind the cut has no say"


def test_the_consensus_is_that_of_a_loop_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    lists = [np.array([draw.permutation(40)[:30] for _ in range(50)]) for _ in range(5)]
    for some in lists:
        some[draw.random(some.shape) < 0.02] = -1
    ids, scores = consensus(lists, 12)
    for row in range(50):
        sums: dict[int, float] = {}
        for some in lists:
            for rank, item in enumerate(some[row]):
                sums[item] = sums.get(item, 0) + exp(-rank / 10) * (item >= 0)
        sums.pop(-1, None)
        best = sorted(sums, key=lambda item: (-round(sums[item], 12), item))[:12]
        assert ids[row].tolist() == best and scores[row] == pytest.approx([sums[item] for item in best], rel=1e-6)
    again = consensus(lists[::-1], 12)
    assert np.array_equal(again[0], ids) and np.array_equal(again[1], scores)
    monkeypatch.setattr("recbole_prune.teachers.ranked_lists._ENTRIES_AT_ONCE", 1000)
    assert np.array_equal(consensus(lists, 12)[0], ids)


class Fixed(Teacher):
    """Ranks as it is told."""

    def __init__(self, basics: Basics, observed: np.ndarray) -> None:
        super().__init__(basics)
        self.told = observed

    def rank_items(self) -> Any:
        raise AssertionError("nobody asks")

    rank_users = rank_items

    def rank_observed(self, length: int) -> np.ndarray:
        return self.told[:, :length]


def fixed(store: ListStore, *observed: np.ndarray, consumed: dict[int, list[int]]) -> Ensemble:
    """Teachers of four users with these items in training."""
    users = np.concatenate([np.full(len(items), user) for user, items in consumed.items()])
    pairs = UsedIds(users, np.concatenate(list(consumed.values())), 4, 12)
    pupils: Any = SimpleNamespace(seed=1, consumed=pairs, item_count=12, user_count=4)
    identity = {"path": "a", "sha256": "a", "parameters": 3}
    return Ensemble([Fixed(Basics(identity, pupils, 7, store), one) for one in observed], store)


def test_what_users_have_is_ranked_together(tmp_path: Path) -> None:
    consumed = {1: [2, 5, 7], 2: [3], 3: [1, 2, 3, 4, 5, 6]}
    one = padded([], [5, 2, 7], [], [6, 5, 4, 3, 2])  # a file of lists knows some of them only
    two = padded([], [7, 5, 2], [], [5, 6])
    folder = RunFolder(tmp_path)
    folder.open()
    ensemble = fixed(ListStore(folder, ["a", "b"], 7), one, two, consumed=consumed)
    # by hand: 5: 1 + e^-.1, 7: e^-.2 + 1, 2: e^-.1 + e^-.2
    assert ensemble.observed(4).tolist() == [[-1] * 4, [5, 7, 2, -1], [3, -1, -1, -1], [5, 6, 4, 3]]
    assert ensemble.observed(6)[3].tolist() == [5, 6, 4, 3, 2, 1], "what nobody ranks stands behind"
    assert ensemble.observed(2).dtype == np.int32 and ensemble.observed(2).tolist()[1] == [5, 7]
    assert ensemble.members[0].members == (ensemble.members[0],)
    again = fixed(ListStore(folder, ["a", "b"], 7), *[np.empty((0, 0))] * 2, consumed=consumed)
    assert np.array_equal(again.observed(4), ensemble.observed(4)), "once for a run folder"
    folder.close()


# ---- teachers of real models ---------------------------------------------------------------------------------------


def together(data: Path, *files: Path, **changes: Any) -> Teacher:
    return open_for(data, Path(",".join(map(str, files))), distill_list_length=LENGTH, **changes)


@pytest.mark.slow
def test_ids_go_by_token_for_each_of_several_teachers(
    timed_data: Path, reordered_data: Path, checkpoint_of: Checkpoints
) -> None:
    """One teacher's dataset has the ids of the student, the other's has others; who is named first is no matter."""
    files = checkpoint_of("BPR", timed_data)[1], checkpoint_of("LightGCN", reordered_data)[1]
    ensemble, turned = together(timed_data, *files), together(timed_data, *reversed(files))
    alone = [together(timed_data, file) for file in files]
    assert isinstance(ensemble, Ensemble) and isinstance(turned, Ensemble)
    assert [member.identity["model"] for member in ensemble.members] == ["BPR", "LightGCN"]
    for found in (ensemble, turned):
        assert np.array_equal(found.items_of_users, consensus([one.items_of_users for one in alone], LENGTH)[0])
        assert np.array_equal(found.users_of_items, consensus([one.users_of_items for one in alone], LENGTH)[0])
        assert np.array_equal(found.observed(10), ensemble.observed(10))
    consumed = ensemble.pupils.consumed
    for user in range(1, ensemble.pupils.user_count):
        assert not set(ensemble.items_of_users[user]) & set(consumed[user])
        assert set(ensemble.observed(10)[user]) - {-1} <= set(consumed[user])
        assert (ensemble.observed(10)[user] >= 0).sum() == min(10, len(consumed[user]))
    model = checkpoint_of("BPR", timed_data)[0].model
    scores = (model.user_embedding.weight @ model.item_embedding.weight.t()).detach().numpy()
    for user in range(1, ensemble.pupils.user_count):
        ranked = sorted(consumed[user], key=lambda item: -scores[user, item])[:7]
        assert alone[0].rank_observed(7)[user].tolist() == ranked + [-1] * (7 - len(ranked))


@pytest.mark.parametrize("method", slow_but(["de"], ["de", "kd", "cd"]))
def test_what_several_teachers_cannot_say_is_refused(
    method: str, timed_data: Path, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    files = checkpoint_of("BPR", timed_data)[1], checkpoint_of("LightGCN", timed_data)[1]
    named = Path(",".join(map(str, files)))
    what = {"de": "no vectors in common", "kd": "no logits in common", "cd": "no logits in common"}[method]
    text = refusal(lambda: Beginner(method, timed_data, named, tmp_path))
    assert text.startswith(f"the teachers {files[0]}, {files[1]} have {what}") and "learns from rankings" in text


def test_what_the_journal_says_of_several(timed_data: Path, checkpoint_of: Checkpoints) -> None:
    files = checkpoint_of("BPR", timed_data)[1], checkpoint_of("LightGCN", timed_data)[1]
    identity = together(timed_data, *files).identity
    config = student_config(timed_data, Path(",".join(map(str, files))))
    assert [member["sha256"] for member in identity["members"]] == config.teacher_digests
    assert identity["kind"] == "ensemble" and identity["path"] == f"{files[0]}, {files[1]}"
    assert identity["parameters"] == sum(member["parameters"] for member in identity["members"])
    turned = student_config(timed_data, Path(f"{files[1]},{files[0]}"))
    assert len({config.run_hash, turned.run_hash, student_config(timed_data, files[0]).run_hash}) == 3
    assert config.run_hash_of(config.teacher_digests[::-1]) == turned.run_hash


@pytest.mark.slow
def test_each_of_several_teachers_must_fit(timed_data: Path, checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    good = checkpoint_of("BPR", timed_data)[1]
    args = {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"}
    other = checkpoint_of("BPR", timed_data, eval_args=args)[1]
    text = refusal(lambda: together(timed_data, good, other))
    assert text.startswith(f"distill_teacher={other}: it was trained on other data, another split")
    copy = tmp_path / "copy.pth"
    copy.write_bytes(good.read_bytes())
    text = refusal(lambda: together(timed_data, good, copy))
    assert text == f"distill_teacher={copy} is the teacher that distill_teacher={good} is: several teachers must differ"
    text = refusal(lambda: student_config(timed_data, Path(f"{good},{tmp_path / 'gone.pth'}")))
    assert text.startswith(f"distill_teacher={tmp_path / 'gone.pth'}: there is no such file")
