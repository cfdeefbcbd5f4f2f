"""Files are read by pandas' parser in C exactly as by its parser in Python, which RecBole asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_prune.compat.plain_tables import read_table

_ANY_FILE = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIELDS = {"user_id:token": str, "rating:float": np.float64, "words:token_seq": str}

numbers = st.floats(allow_nan=False).map(repr) | st.sampled_from(
    ["", "nan", "NA", "1e400", " 1", "1 ", "0x1", "x", "-inf"]
)
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n"), max_size=6) | st.sampled_from(
    ["", " ", "NA", "null", "007", "'a'", "#1", "a b", '"a"', 'a"b', '"', "\r", "\\n", "é"]
)
rows = st.lists(
    st.tuples(texts, numbers, texts).map(list) | st.lists(texts, max_size=5) | st.sampled_from([[], [""], [" "]]),
    max_size=6,
)


def both(path: Path, separator: str, columns: list[str]) -> list[Any]:
    """What the file gives as RecBole asks for it, and as it is read here: a frame, or the kind of error."""
    found: list[Any] = []
    for read in (pd.read_csv, lambda *args, **kwargs: read_table(pd, *args, **kwargs)):
        try:
            types = {name: FIELDS[name] for name in columns}
            found.append(
                read(path, delimiter=separator, usecols=columns, dtype=types, encoding="utf-8", engine="python")
            )
        except Exception as error:
            found.append((type(error), str(error)))
    return found


@_ANY_FILE
@given(
    rows=rows,
    separator=st.sampled_from(["\t", ",", ";", "|", " ", "::"]),
    columns=st.sampled_from([list(FIELDS), ["rating:float"], ["words:token_seq", "user_id:token"]]),
    ends=st.booleans(),
)
def test_both_parsers_read_the_same(
    rows: list[list[str]], separator: str, columns: list[str], ends: bool, tmp_path: Path
) -> None:
    path = tmp_path / "data.inter"
    text = "\n".join(separator.join(row) for row in [list(FIELDS), *rows]) + ("\n" if ends else "")
    path.write_bytes(text.encode("utf-8"))
    expected, found = both(path, separator, columns)
    assert type(found) is type(expected)
    if isinstance(expected, tuple):
        assert found == expected
    else:
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_plain_files_are_read_in_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[str] = []
    real = pd.read_csv
    monkeypatch.setattr(
        pd, "read_csv", lambda *args, **kwargs: engines.append(kwargs["engine"]) or real(*args, **kwargs)
    )
    path = tmp_path / "data.inter"
    for content, engine in ((b"user_id:token\trating:float\n1\t0.1\n", "c"), (b'user_id:token\n"1"\n', "python")):
        path.write_bytes(content)
        read_table(pd, path, delimiter="\t", usecols=["user_id:token"], engine="python")
        assert engines.pop() == engine
    assert not engines


@pytest.mark.parametrize("content", [b"user_id:token\n\xff\xfe\n", b""])
def test_what_cannot_be_read_says_so_as_before(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.inter"
    path.write_bytes(content)
    expected, found = both(path, "\t", ["user_id:token"])
    assert isinstance(expected, tuple) and found == expected
