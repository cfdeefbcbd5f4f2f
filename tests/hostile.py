"""Artifacts as somebody would forge them: any field, header or byte changed, and every hash made to fit again.

``python tests/hostile.py COUNT SEED`` mutates one artifact COUNT times and uses each; it prints what came of it.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recbole_prune.artifact import files, forms, read_artifact, write_artifact
from recbole_prune.artifact.encoding import encode
from recbole_prune.artifact.files import Seen
from recbole_prune.artifact.graph import store_graph
from recbole_prune.errors import PruneError
from recbole_prune.serving import Recommender
from recbole_prune.sparse import compiling

USERS, ITEMS, WIDTH = 12, 20, 16

# text that json.dumps would not write; it takes the place of a string
RAW = {
    "@digits": "7" * 5000,
    "@nan": "NaN",
    "@infinity": "-Infinity",
    "@overflow": "1e999",
    "@deep": "[" * 300 + "]" * 300,
    "@deeper": '{"a":' * 20000 + "1" + "}" * 20000,
}
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 255, 2**31, 2**53, 2**63, 10**18, 0.5, -0.0, 1e308, "", "\x1b[2J\nfake", "\0",
    "../../etc/passwd", [], [0], [10**9, 10**9], [2**40] * 32, {}, {"same_as": "item"}, "x", "rows",
    "dense", "float64", "object",
    *RAW,
)  # fmt: skip


def make(folder: Path) -> Path:
    """A small artifact with every encoding and number format and a graph, that can recommend."""
    source = np.random.default_rng(0)
    tensors = {}
    for name, rows, sparsity, values in (
        ("user", USERS, 0.9, "fp32"), ("item", ITEMS, 0.8, "fp32"), ("bits", 8, 0.5, "fp16"), ("full", 6, 0.0, "int8"),
        ("codes", 6, 0.9, "int8"),
    ):  # fmt: skip
        live = source.random((rows, WIDTH)) >= sparsity
        tensors[name] = encode(
            np.where(live, source.standard_normal((rows, WIDTH)), 0).astype(np.float32), live, values
        )
    for name, values in (("fixed", "fp32"), ("halves", "int4")):
        live = source.permuted(np.arange(WIDTH) < np.full((30, 1), 3), axis=1)
        live[0] = True
        tensors[name] = encode(np.where(live, source.standard_normal(live.shape), 0).astype(np.float32), live, values)
    tensors["nibbles"] = encode(source.standard_normal((5, 7)).astype(np.float32), values="int4")
    small = [source.standard_normal(shape).astype(np.float32) for shape in ((9, 3), (3, 5), (4, 5), (1, 5))]
    tensors["product"] = forms.factors(small[0], small[1], (0,), small[3]).stored_by(partial(encode, values="int8"))
    tensors["pieces"] = forms.codes(source.integers(0, 4, (9, 2)).astype(np.uint8), small[2], (3,), small[3])
    tensors["hashed"] = forms.hashed(small[1], small[1][:3], 9, 5, (0,), small[3])
    tensors["steps"] = encode(np.array(7))
    tensors["near_users"] = encode(source.standard_normal((USERS, 5)).astype(np.float32), values="int8")
    near_items = source.standard_normal((ITEMS - 1, 3)).astype(np.float32)
    tensors["near_items"] = forms.factors(near_items, small[1], (0,), small[3])
    pairs = source.integers(0, [[USERS], [ITEMS]], (2, 40))
    seen = Seen.from_pairs(pairs[0], pairs[1], USERS)
    edges = np.unique(pairs[:, pairs[1] > 0], axis=1)[:, 4:30]
    graph = store_graph(3, ("near_users", "near_items"), ("far_users", "far_items"), (edges[0], edges[1]), seen)
    assert graph is not None
    write_artifact(
        folder,
        tensors=tensors,
        shared={"tied": "full"},
        vectors={"cache": encode(source.standard_normal((USERS, 3)).astype(np.float32))},
        users=["[PAD]", *(f"u{number}" for number in range(1, USERS))],
        items=["[PAD]", *(f"i{number}" for number in range(1, ITEMS))],
        graph=graph,
        seen=seen,
        tables=["user", "item"],
        document={
            "model": "BPR",
            "dataset": "tiny",
            "settings": {"model": "BPR", "dataset": "tiny", "embedding_size": WIDTH},
            "serving": {"user": "user", "item": "item", "scale": 1.0},
            "serving_reason": None,
        },
    )
    return folder


def forge(folder: Path, change: Callable[[dict[str, Any]], object] = lambda document: None, **contents: bytes) -> Path:
    """Change ticket.json and other files (``seen=``, ``tensors=``, ``users=``, ``items=``), all hashes repaired."""
    names = {"seen": files.SEEN, "tensors": files.TENSORS, "users": files.USERS, "items": files.ITEMS}
    document = json.loads((folder / files.TICKET).read_bytes())
    for name, data in contents.items():
        (folder / names[name]).write_bytes(data)
        document["files"][names[name]] = {"bytes": len(data), "sha256": files.sha256(data)}
    change(document)
    if isinstance(document, dict) and "sha256" in document:
        document["sha256"] = "0" * 64
    text = json.dumps(document, indent=1)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    data = text.encode()
    (folder / files.TICKET).write_bytes(data.replace(b"0" * 64, files.sha256(data).encode(), 1))
    return folder


def arrays_of(folder: Path, name: str = files.TENSORS) -> dict[str, np.ndarray]:
    """The arrays of a file, to be changed."""
    return {key: array.copy() for key, array in files.load_arrays((folder / name).read_bytes(), folder).items()}


def use(folder: Path) -> None:
    """Everything that can be asked of an artifact without RecBole."""
    artifact = read_artifact(folder)
    artifact.state()
    for encoded in artifact.tensors.values():
        encoded.rounding_error()
    for name in artifact.vectors:
        artifact.tensor(name)
    recommender = Recommender(artifact)
    recommender.recommend(["u1"], len(artifact.items) - 1, exclude_seen=False)
    recommender.recommend(["u1", "u2"], 3)


def mutate(folder: Path, choices: random.Random) -> str:
    """Change one thing of the artifact; returns what."""
    kind = choices.choice(["field", "field", "header", "values", "bytes"])
    return {"field": _field, "header": _header, "values": _values, "bytes": _bytes}[kind](folder, choices)


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for name, child in items for place in _places(child, (*way, name))]


def change_field(document: dict[str, Any], way: tuple[Any, ...], value: Any, delete: bool = False) -> None:
    """Put a value into a field, or take the field away."""
    inner: Any = document
    for name in way[:-1]:
        inner = inner[name]
    if delete:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value


def fields_of(folder: Path) -> list[tuple[Any, ...]]:
    """The way to every field of ticket.json, however deep."""
    return _places(json.loads((folder / files.TICKET).read_bytes()))


def _field(folder: Path, choices: random.Random) -> str:
    way, value, delete = choices.choice(fields_of(folder)), choices.choice(ODD_VALUES), choices.random() < 0.15
    forge(folder, lambda document: change_field(document, way, value, delete))
    return f"field {way}: {'deleted' if delete else repr(value)}"


def _header(folder: Path, choices: random.Random) -> str:
    name = choices.choice(["tensors", "seen"])
    path = folder / {"tensors": files.TENSORS, "seen": files.SEEN}[name]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    way = choices.choice(_places(header))
    value = choices.choice([*ODD_VALUES, "F32", "I64", "BF16", "F8_E4M3", "U8", [2**60], [0, 2**62], [len(data), 0]])
    change_field(header, way, value, choices.random() < 0.1)
    text = json.dumps(header)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    size = choices.choice([len(text.encode())] * 8 + [2**63, 0])
    forge(folder, **{name: size.to_bytes(8, "little") + text.encode() + data[8 + length :]})
    return f"header of {name} {way}: {value!r}, length {size}"


def _values(folder: Path, choices: random.Random) -> str:
    name, file = choices.choice([("tensors", files.TENSORS), ("seen", files.SEEN)])
    arrays = arrays_of(folder, file)
    key = choices.choice(sorted(arrays))
    array = arrays[key].reshape(-1)
    how = choices.choice(["large", "small", "nan", "longer", "shorter", "shuffled", "other type"])
    if how in ("large", "small", "nan") and array.size:
        whole = array.dtype.kind in "iu"
        limits = np.iinfo(array.dtype) if whole else np.finfo(array.dtype)
        number = {"large": limits.max, "small": limits.min, "nan": limits.max if whole else np.nan}[how]
        array[choices.randrange(array.size)] = number
    elif how == "longer":
        array = np.concatenate([array, array[:1], array[:1]])
    elif how == "shorter":
        array = array[: array.size // 2]
    elif how == "shuffled":
        array = array[::-1].copy()
    else:
        array = array.astype(choices.choice(["float64", "int64", "bool", "int8"]))
    forge(folder, **{name: files.save_safetensors({**arrays, key: array})})
    return f"{key} of {name}: {how}"


def _bytes(folder: Path, choices: random.Random) -> str:
    """A flipped, cut, doubled or inserted piece of any file; ticket.json then is as it is, unsealed."""
    name = choices.choice(["users", "items", "seen", "tensors", "ticket"])
    file = {"users": files.USERS, "items": files.ITEMS, "seen": files.SEEN, "tensors": files.TENSORS}.get(
        name, files.TICKET
    )
    data = bytearray((folder / file).read_bytes())
    at, how = choices.randrange(len(data)), choices.choice(["flip", "cut", "double", "insert"])
    if how == "flip":
        data[at] ^= 1 << choices.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "double":
        data += data[at:]
    else:
        data[at:at] = choices.choice([b"\xff", b"\n", b"\\", b"\0" * 64, b"\x1b[31m"])
    if name == "ticket":
        (folder / file).write_bytes(data)
    else:
        forge(folder, **{name: bytes(data)})
    return f"{name}: {how} at {at}"


def clear_line(error: Exception) -> bool:
    """Whether the text of an error is one line that a terminal can show."""
    text = str(error)
    odd = any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in text)
    return not odd and len(text.splitlines()) == 1 and len(text) < 5000


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def repair(folder: Path, intact: dict[str, bytes]) -> Path:
    """Write what :func:`contents` gave."""
    for name, data in intact.items():
        (folder / name).write_bytes(data)
    return folder


def peak_bytes() -> int:
    """The most memory that this process has held; ``ru_maxrss`` would count that of its parent too."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def main(count: int, seed: int) -> None:
    """Mutate and use an artifact ``count`` times; a hang ends the process by an alarm."""
    compiling.available()  # with numba loaded, every piece of work goes through the compiled loops
    results: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as scratch:
        intact = contents(make(Path(scratch, "a")))
        use(Path(scratch, "a"))
        for number in range(count):
            what = mutate(repair(Path(scratch, "a"), intact), random.Random(f"{seed} {number}"))
            signal.alarm(60)
            try:
                use(Path(scratch, "a"))
                results["success"] += 1
            except PruneError as error:
                results["refused"] += 1
                if not clear_line(error):
                    faults.append(f"{what}: not one clear line: {error}")
            except BaseException as error:
                faults.append(f"{what}: {type(error).__name__}: {error}"[:500])
            signal.alarm(0)
    print(json.dumps({**results, "faults": faults, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
