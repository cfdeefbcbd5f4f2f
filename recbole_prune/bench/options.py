"""Kinds of options that several benchmarks take."""

from __future__ import annotations

from pathlib import Path

from recbole_prune.config import schema
from recbole_prune.config.options import Option, file_to_write, positive, some_text


def sparsities(text: str) -> list[float]:
    """Numbers from 0 up to, not including, 1, with commas between them."""
    numbers = [float(part) for part in text.strip("[]").split(",")]
    if not all(0 <= number < 1 for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(text)
    return numbers


def value_types(text: str) -> list[str]:
    """Number formats of an artifact with commas between them."""
    names = text.split(",")
    if not set(names) <= set(schema.known_keys()["export_values"].choices or ()):
        raise ValueError(text)
    return names


def seconds(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def work(text: str) -> str:
    """What ``bench energy`` measures."""
    if text not in ("train", "lists"):
        raise ValueError(text)
    return text


def path(text: str) -> Path:
    """A path that is not empty."""
    return Path(some_text(text))


_NUMBER = "a whole number from 1"
SPARSITIES = Option(sparsities, [0.0, 0.9], "numbers from 0 to below 1, such as 0,0.9", "sparsities to measure")
REPEATS = Option(positive, 5, _NUMBER, "samples of each candidate, after one round to warm up")
THREADS = Option(positive, None, _NUMBER, "threads of every library; default: OMP_NUM_THREADS, else all cores")
TO = Option(file_to_write, None, "a file to write, no folder or device", "write the JSON there")
BATCHES = Option(positive, None, _NUMBER, "only the first so many batches of an epoch")
FOLDER = Option(path, None, "a folder", "folder to write the dataset's folder into", required=True)


def number(default: int | None, meaning: str, required: bool = False) -> Option:
    """An option that is a whole number from 1."""
    return Option(positive, default, _NUMBER, meaning, required)
