"""RecBole's datasets on pandas 3: copy-on-write, ``agg(len)`` and string columns."""

from __future__ import annotations

import builtins
import functools
import warnings
from collections.abc import Sized
from types import ModuleType
from typing import TYPE_CHECKING, Callable

import numpy as np
import pandas as pd

from recbole_prune.compat import hooks

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

_DATASET = "recbole.data.dataset.dataset"


def _fills_columns_in_place() -> bool:
    frame = pd.DataFrame({"column": [1.0, np.nan]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas 2.2 and 3 warn about exactly this call
        frame["column"].fillna(0.0, inplace=True)
    return not frame["column"].isna().any()


def fill_missing_values(report: hooks.Report) -> None:
    """Assign filled columns instead of filling them in place."""
    if _fills_columns_in_place():
        report(False, f"not needed: pandas {pd.__version__} fills a column in place")
        return
    hooks.after_import(_DATASET, "pandas fillna", _replace_fill_nan)
    # _load_feat still fills in place, to no effect: read_csv has filled the columns already
    report(True, f"pandas {pd.__version__} does not fill a column in place")


def _replace_fill_nan(module: ModuleType) -> None:
    dataset = module.Dataset
    dataset._fill_nan = functools.wraps(dataset._fill_nan)(_fill_nan)
    _wrap_read_csv(module, _fill_sequence_columns)


def _fill_nan(self: Dataset) -> None:
    """``Dataset._fill_nan`` with assignment: tokens get 0 ([PAD]), floats the mean, sequences an empty array."""
    self.logger.debug("Filling nan")
    for feat_name in self.feat_name_list:
        feat = getattr(self, feat_name)
        for field in feat:
            kind = self.field2type[field].value
            if kind == "token":
                feat[field] = feat[field].fillna(value=0)
            elif kind == "float":
                feat[field] = feat[field].fillna(value=feat[field].mean())
            else:
                dtype = np.int64 if kind == "token_seq" else np.float64
                feat[field] = [np.array([], dtype=dtype) if isinstance(x, float) else x for x in feat[field]]


def _fill_sequence_columns(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns:
        if str(column).endswith("_seq"):  # in RecBole's files a column is named field:type
            frame[column] = frame[column].fillna("")
    return frame


def read_objects(report: hooks.Report) -> None:
    """Hand string columns to RecBole as Python objects."""
    if pd.Series(["text"]).astype(str).dtype == object:
        report(False, f"not needed: pandas {pd.__version__} keeps strings as objects")
        return
    hooks.after_import(_DATASET, "pandas string columns", lambda module: _wrap_read_csv(module, _to_objects))
    report(True, f"pandas {pd.__version__} has a string type")


def _to_objects(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns:
        if isinstance(frame[column].dtype, pd.StringDtype):
            frame[column] = frame[column].astype(object)
    return frame


def _wrap_read_csv(module: ModuleType, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Give ``module`` a ``pd`` whose ``read_csv`` passes its frame through ``change``."""
    pandas = module.pd

    def read_csv(*args: object, **kwargs: object) -> pd.DataFrame:
        return change(pandas.read_csv(*args, **kwargs))

    vars(module)["pd"] = hooks.Overlay(pandas, read_csv=read_csv)


def count_elements(report: hooks.Report) -> None:
    """Let ``agg(len)`` return the length of every element in the modules that count sequence lengths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(pd.Series([[1, 2], [3]]).agg(builtins.len), pd.Series):
            report(False, f"not needed: Series.agg(len) of pandas {pd.__version__} looks at each element")
            return
    for name in ("dataset", "kg_dataset", "sequential_dataset"):
        hooks.after_import(f"recbole.data.dataset.{name}", "pandas agg(len)", _replace_len)
    report(True, f"Series.agg(len) of pandas {pd.__version__} returns the number of rows")


def _replace_len(module: ModuleType) -> None:
    def element_lengths(values: pd.Series | Sized) -> pd.Series | int:
        # these modules take the length of a Series only through agg(len); every other argument is an array,
        # an index, a frame or an Interaction
        return values.map(builtins.len) if isinstance(values, pd.Series) else builtins.len(values)

    vars(module)["len"] = element_lengths
