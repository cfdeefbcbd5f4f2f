"""What a run does not need is not imported, and is there as soon as something needs it."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from compat_helpers import Reports

from recbole_prune.compat import hooks, late_imports

_RUN = """
import sys
from recbole_prune import run_recbole_prune
run_recbole_prune("BPR", {dataset!r}, config_dict={settings!r})
late = [name for name in ("sklearn", "torch._dynamo.symbolic_convert", "sympy") if name in sys.modules]
print("imported:", late)
"""


def _after_a_run(dataset: str, settings: dict[str, object], more: str, folder: Path) -> str:
    script = _RUN.format(dataset=dataset, settings=settings) + more
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(torch, "_compile"), reason="this torch does not import torch._dynamo late")
def test_a_run_imports_neither_sklearn_nor_dynamo(tiny_data: Path, tmp_path: Path) -> None:
    settings = {"data_path": str(tiny_data), "epochs": 1, "pruner": "none", "show_progress": False}
    later = """
from recbole.evaluator import metrics
import numpy as np
assert metrics.sk_auc(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.5
assert "sklearn.metrics" in sys.modules
import sklearn.cluster, torch
assert torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist() == [2, 2]
assert "torch._dynamo.symbolic_convert" in sys.modules
import torch._dynamo.config
optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
optimizer.step()
print("all there")
"""
    output = _after_a_run("tiny", settings, later, tmp_path)
    assert "imported: []" in output
    assert output.rstrip().endswith("all there")


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, patch in (("sklearn", late_imports.import_sklearn_late),
                        ("torch._dynamo", late_imports.import_dynamo_late)):  # fmt: skip
        there = hooks.make_module(name)
        monkeypatch.setitem(sys.modules, name, there)
        patch(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert sys.modules[name] is there


def test_a_late_category_filters_what_the_real_one_does(recwarn: pytest.WarningsRecorder) -> None:
    from sklearn.exceptions import ConvergenceWarning

    late = late_imports._late("sklearn.exceptions", "ConvergenceWarning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=late)
        warnings.warn("filtered", ConvergenceWarning, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["another"]


def test_late_functions_are_the_real_ones() -> None:
    from sklearn.linear_model import ElasticNet

    assert isinstance(late_imports._late("sklearn.linear_model", "ElasticNet")(alpha=0.5), ElasticNet)


def test_every_import_of_sklearn_that_recbole_makes_at_once_is_late() -> None:
    import recbole

    folder = Path(recbole.__file__).parent
    named = re.compile(r"^from (sklearn[\w.]*) import (\w+(?:, \w+)*)", re.M)
    found = {
        ".".join(("recbole", *file.relative_to(folder).with_suffix("").parts)): {
            (package, name.strip()) for package, names in imports for name in names.split(",")
        }
        for file in folder.rglob("*.py")
        if (imports := named.findall(file.read_text(encoding="utf-8")))
    }
    late = {
        importer: {(package, name) for package, names in packages.items() for name in names}
        for importer, packages in late_imports._SKLEARN.items()
    }
    assert found == late
