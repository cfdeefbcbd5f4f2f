"""The artifact on disk: what is written is read back, and what was damaged is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_prune.artifact import Artifact, files, read_artifact, replacing, write_artifact
from recbole_prune.artifact.encoding import encode
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.tokens import Tokens, tokens_to_bytes
from recbole_prune.errors import ArtifactError

ALL_FILES = (files.TICKET, *files.CONTENT)
USERS = ["[PAD]", "196", "naïve\nuser", "back\\slash\\n", ""]
ITEMS = ["[PAD]", "50", "日本", "\ud800 lone", "a,b\r"]


def write(folder: Path, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A small artifact in every encoding."""
    random = np.random.default_rng(seed)
    tensors, state = {}, {}
    for name, sparsity in (("user.weight", 0.9), ("item.weight", 0.5), ("layer.weight", 0.0)):
        live = random.random((5, 16)) >= sparsity
        state[name] = np.where(live, random.standard_normal((5, 16)), 0).astype(np.float32)
        tensors[name] = encode(state[name], live)
    arguments: dict[str, Any] = {
        "tensors": tensors,
        "shared": {"tied.weight": "layer.weight"},
        "vectors": {"cache": encode(random.standard_normal((5, 4)).astype(np.float32))},
        "users": USERS,
        "items": ITEMS,
        "seen": Seen.from_pairs(np.array([1, 1, 4, 1]), np.array([4, 2, 1, 2]), len(USERS)),
        "tables": ["user.weight", "item.weight"],
        "document": {"model": "BPR", "settings": {"learning_rate": 0.001}},
    }
    write_artifact(folder, **{**arguments, **changes})
    return state


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "artifact"
    state = write(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(ALL_FILES)
    assert os.listdir(folder.parent) == ["artifact"]
    artifact = read_artifact(folder)
    assert {encoded.encoding for encoded in artifact.tensors.values()} == {"rows", "bitmap", "dense"}
    decoded = artifact.state()
    assert set(decoded) == {*state, "tied.weight"}
    for name, tensor in state.items():
        assert decoded[name].tobytes() == tensor.tobytes() == artifact.tensor(name).tobytes()
    assert np.array_equal(artifact.tensor("tied.weight"), state["layer.weight"])
    assert artifact.tensor("cache").shape == (5, 4)
    assert list(artifact.users) == USERS and list(artifact.items) == ITEMS
    assert [artifact.seen.of(user).tolist() for user in range(5)] == [[], [2, 4], [], [], [1]]
    assert artifact.info["settings"] == {"learning_rate": 0.001}
    with pytest.raises(ArtifactError, match="no tensor 'x'; it has user.weight"):
        artifact.tensor("x")


def test_reported_bytes_are_the_bytes_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "artifact")
    info = read_artifact(tmp_path / "artifact").info
    sizes = {name: len(data) for name, data in snapshot(tmp_path / "artifact").items()}
    assert info["bytes"]["total"] == sum(sizes.values())
    assert {name: entry["bytes"] for name, entry in info["files"].items()} == {
        name: size for name, size in sizes.items() if name != files.TICKET
    }
    parts = [info["tensors"][name] for name in ("user.weight", "item.weight")]
    assert info["bytes"]["tables"] == sum(part["bytes"] for part in parts)
    assert info["bytes"]["tables_dense"] == 2 * 5 * 16 * 4
    assert info["bytes"]["tables_ratio"] == pytest.approx(
        info["bytes"]["tables"] / info["bytes"]["tables_bound"], rel=1e-3
    )
    write(tmp_path / "artifact", tables=[])
    assert read_artifact(tmp_path / "artifact").info["bytes"]["tables_ratio"] is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(codec=None, exclude_categories=()), max_size=8), min_size=1))
def test_any_token_survives(tokens: list[str]) -> None:
    data = tokens_to_bytes(tokens)
    assert data.count(b"\n") == len(tokens)
    read = Tokens(data, Path("tokens"))
    assert len(read) == len(tokens) and list(read) == tokens == read[:]
    for token in tokens:
        assert read.id_of(token) == (tokens[1:].index(token) + 1 if token in tokens[1:] else None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 300))))
def test_seen_holds_each_pair_once(pairs: list[tuple[int, int]]) -> None:
    users, items = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    seen = Seen.from_bytes(Seen.from_pairs(users, items, 10).to_bytes(), Path("seen"), 10, 301)
    for user in range(10):
        assert seen.of(user).tolist() == sorted({i for u, i in pairs if u == user and i > 0})
    assert seen.indices.dtype.itemsize <= 2


def test_every_flipped_byte_is_found_and_its_file_named(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    for name in ALL_FILES:
        data = (folder / name).read_bytes()
        step = 2 if name == files.TICKET else max(1, len(data) // 100)
        for position in [*range(0, len(data), step), len(data) - 1]:
            damaged = bytearray(data)
            damaged[position] ^= (0x01, 0x20, 0xFF)[position % 3]
            (folder / name).write_bytes(damaged)
            with pytest.raises(ArtifactError, match=name):
                read_artifact(folder)
        (folder / name).write_bytes(data)
    read_artifact(folder)


@pytest.mark.parametrize("name", ALL_FILES)
def test_truncated_lengthened_and_missing_files_are_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    data = (folder / name).read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(ArtifactError, match=f"{name} is (truncated|damaged)"):
            read_artifact(folder)
    (folder / name).write_bytes(data + b"\n")
    with pytest.raises(ArtifactError, match=f"{name} is (too long|damaged)"):
        read_artifact(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read_artifact(folder)


def test_all_damaged_files_stand_in_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    (folder / files.SEEN).unlink()
    (folder / files.USERS).write_bytes(b"196")
    with pytest.raises(ArtifactError, match=rf"{files.USERS} is truncated.*; .*{files.SEEN} is missing; "):
        read_artifact(folder)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact in .*nowhere"):
        read_artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no artifact in"):
        read_artifact(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="no artifact in"):
        read_artifact(tmp_path / "file")


def test_the_version_is_checked_before_the_hashes(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    ticket = folder / files.TICKET
    text = ticket.read_text()
    ticket.write_text(text.replace('"format_version": 1', '"format_version": 4'))
    shutil.copy(ticket, folder / files.SEEN)
    with pytest.raises(ArtifactError, match="artifact has format version 4, this recbole_prune reads up to 3: upgrade"):
        read_artifact(folder)
    for wrong in ("0", "true", '"1"', "null"):
        ticket.write_text(text.replace('"format_version": 1', f'"format_version": {wrong}'))
        with pytest.raises(ArtifactError, match="is no format version"):
            read_artifact(folder)
    for other in ("[]", "{}", '{"format": "zip", "format_version": 1}', "[" * 100000):
        ticket.write_text(other)
        with pytest.raises(ArtifactError, match=files.TICKET):
            read_artifact(folder)


def reseal(folder: Path, change: Any) -> None:
    """Change ticket.json as somebody would who also repairs its digest."""
    ticket = folder / files.TICKET
    document = json.loads(ticket.read_text())
    change(document)
    del document["sha256"]
    ticket.write_bytes(files.seal(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["files"].pop(files.SEEN),
        lambda document: document["files"].update({"../x": {"bytes": 0, "sha256": ""}}),
        lambda document: document["tensors"].update({"new": {"same_as": "nobody"}}),
        lambda document: document["tensors"]["user.weight"].update(shape=[5, 17]),
        lambda document: document["tensors"]["user.weight"].update(encoding="bitmap"),
        lambda document: document["tensors"]["user.weight"].pop("kept"),
        lambda document: document["tensors"].pop("user.weight"),
        lambda document: document.pop("vectors"),
        lambda document: document.update(tensors=[1]),
    ],
)
def test_consistent_hashes_do_not_hide_nonsense(tmp_path: Path, change: Any) -> None:
    write(tmp_path / "artifact")
    reseal(tmp_path / "artifact", change)
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path / "artifact")


def test_a_new_artifact_replaces_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write(folder, seed=0)
    before = snapshot(folder)
    state = write(folder, seed=1)
    assert snapshot(folder) != before
    assert np.array_equal(read_artifact(folder).tensor("user.weight"), state["user.weight"])
    assert os.listdir(tmp_path) == ["artifact"]


@pytest.mark.parametrize("failing", range(len(ALL_FILES) + 1))
@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, old: bool
) -> None:
    folder = tmp_path / "artifact"
    if old:
        write(folder)
    before = snapshot(folder) if old else None
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="artifact .* was not written: No space left on device") as caught:
        write(folder, seed=1)
    assert ("the artifact that was there is unchanged" in str(caught.value)) == old
    assert os.listdir(tmp_path) == (["artifact"] if old else [])
    assert not old or snapshot(folder) == before


def test_a_folder_that_cannot_be_synced_after_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    sync = replacing._sync_folder

    def failing(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(replacing, "_sync_folder", failing)
    state = write(folder, seed=1)
    assert np.array_equal(read_artifact(folder).tensor("user.weight"), state["user.weight"])
    # whether the exchange outlives a power cut is not known, so the old artifact is kept until the next export
    assert sorted(os.listdir(tmp_path)) == [".artifact.old", "artifact"]
    monkeypatch.undo()
    write(folder, seed=2)
    assert os.listdir(tmp_path) == ["artifact"]


def test_a_file_system_that_refuses_to_grow_a_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = tmp_path / "artifact"
    write(folder)
    before, limits = snapshot(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[files.TENSORS]) // 2, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="was not written: File too large"):
            write(folder, seed=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(folder) == before and os.listdir(tmp_path) == ["artifact"]


def test_a_failing_rename_puts_the_old_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    before, rename = snapshot(folder), Path.rename

    def failing(path: Path, target: Path) -> Path:
        if ".tmp-" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match="Input/output error; the artifact that was there is unchanged"):
        write(folder, seed=1)
    assert snapshot(folder) == before and os.listdir(tmp_path) == ["artifact"]


def test_an_artifact_set_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    before = snapshot(folder)
    folder.rename(tmp_path / ".artifact.old")
    with pytest.raises(ZeroDivisionError):
        write(folder, seed=1, check=lambda artifact: 1 / 0)
    assert snapshot(folder) == before
    folder.rename(tmp_path / ".artifact.old")
    write(folder, seed=1)
    assert snapshot(folder) != before and os.listdir(tmp_path) == ["artifact"]


def killed_half_way(folder: Path) -> Path:
    """What a process leaves that is killed while it writes an artifact."""
    half = folder.with_name(f".{folder.name}.tmp-0123abcd")
    half.mkdir()
    (half / files.TENSORS).write_bytes(b"half")
    return half


def test_what_a_killed_process_left_goes_at_the_next_writing(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    killed_half_way(folder)
    other = killed_half_way(tmp_path / "large")
    own = tmp_path / ".small.tmp-mine"
    own.mkdir()
    write(folder)
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, own.name, "small"])


def test_a_folder_that_another_process_is_writing_stays(tmp_path: Path) -> None:
    """The check of the outer artifact writes two more in the same place, as two other processes might."""
    folder, states = tmp_path / "small", []

    def write_others(artifact: Artifact) -> None:
        states.extend(write(folder, seed) for seed in (1, 2))
        assert artifact.folder.is_dir()

    last = write(folder, check=write_others)
    assert np.array_equal(read_artifact(folder).tensor("user.weight"), last["user.weight"])
    assert len(states) == 2 and os.listdir(tmp_path) == ["small"]


def test_foreign_folders_with_names_of_leftovers_stay(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    write(folder)
    for name in (".small.tmp-0123abcd", ".small.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match="was not written: Directory not empty; .* is unchanged"):
        write(folder, seed=1)
    assert len(list(tmp_path.glob(".small.*/thesis.tex"))) == 2


def test_the_check_sees_the_files_and_can_refuse(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    seen: list[Artifact] = []

    def refuse(artifact: Artifact) -> None:
        seen.append(artifact)
        assert not folder.exists()
        raise ArtifactError("refused")

    with pytest.raises(ArtifactError, match="refused"):
        write(folder, check=refuse)
    assert os.listdir(tmp_path) == [] and list(seen[0].users) == USERS


def test_foreign_files_are_never_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match="'thesis.tex', which is no part of an artifact"):
        write(folder)
    assert os.listdir(folder) == ["thesis.tex"] and os.listdir(tmp_path) == ["home"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="there is a file of that name"):
        write(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write(tmp_path / "link", seed=1)
    assert (tmp_path / "link").is_symlink()
    read_artifact(tmp_path / "empty")


def test_reserved_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="files"):
        write(tmp_path / "artifact", document={"files": {}})
