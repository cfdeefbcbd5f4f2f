"""Nothing is patched without its defect, and the hooks reach only what they are meant for."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pandas as pd
import pytest
import torch
from compat_helpers import Reports
from scipy.sparse import dok_matrix

from recbole_prune.compat import hooks, models, numerics, optional_packages, pandas3, torch_load


@pytest.fixture
def own_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks registered by the test are forgotten afterwards."""
    monkeypatch.setattr(hooks, "_AFTER", {})
    monkeypatch.setattr(hooks, "_AROUND", {})


class TestInactiveWithoutDefect:
    """Each patch leaves alone what works; the working library is simulated where it is not installed."""

    def test_numpy(self, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> None:
        for name in ("float_", "complex_", "unicode_", "bool", "int", "float", "complex", "object", "str", "long"):
            monkeypatch.setattr(np, name, getattr(np, name, object()), raising=False)
        monkeypatch.setattr(np, "unicode", np.str_, raising=False)
        numerics.restore_numpy_aliases(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    @pytest.mark.parametrize("name", ["int", "float", "object", "str"])
    def test_numpy_keeps_what_is_there(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        own = object()
        monkeypatch.setattr(np, name, own, raising=False)
        numerics._set_missing_aliases()
        assert getattr(np, name) is own

    def test_scipy(self) -> None:
        before = dok_matrix._update
        numerics.restore_dok_update(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert dok_matrix._update is before

    def test_torch_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        patched = torch.load

        def permissive(*args: Any, **kwargs: Any) -> Any:
            return patched(*args, weights_only=False, **kwargs)

        monkeypatch.setattr(torch, "load", permissive)
        torch_load.allow_recbole_checkpoints(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert torch.load is permissive

    def test_pandas_fillna(self, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> None:
        monkeypatch.setattr(pandas3, "_fills_columns_in_place", lambda: True)
        pandas3.fill_missing_values(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    def test_pandas_len(self, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> None:
        monkeypatch.setattr(pd.Series, "agg", pd.Series.map)
        pandas3.count_elements(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    def test_pandas_strings(self, own_hooks: None) -> None:
        try:
            before = pd.get_option("future.infer_string")
        except KeyError:
            pandas3.read_objects(reports := Reports())
        else:
            pd.set_option("future.infer_string", False)
            try:
                pandas3.read_objects(reports := Reports())
            finally:
                pd.set_option("future.infer_string", before)
        assert [active for active, _ in reports] == [False]
        assert not hooks.hooked_modules()

    @pytest.mark.parametrize(
        ("install", "package"),
        [
            (optional_packages.replace_ray, "ray"),
            (optional_packages.replace_torch_scatter, "torch_scatter"),
            (optional_packages.replace_kmeans_pytorch, "kmeans_pytorch"),
            (models.cluster_ncl_without_faiss, "faiss"),
        ],
    )
    def test_working_packages_are_used(
        self, install: Callable[[hooks.Report], Callable[[], bool]], package: str, own_hooks: None
    ) -> None:
        real = hooks.make_module(package)
        parts = {"ray.tune": hooks.make_module("ray.tune")} if package == "ray" else {}
        with hooks.stand_in({package: real, **parts}):
            decide = install(reports := Reports())
            assert not reports  # a package that is installed is imported on first use only
            assert not decide()
        assert reports == [(False, f"not needed: {package}{'.tune' if parts else ''} works")]

    @pytest.mark.parametrize(
        ("edge_subgraph", "problem"),
        [
            (lambda graph, edges, preserve_nodes=False: None, None),
            (lambda graph, edges, relabel_nodes=True: None, "has no preserve_nodes"),
        ],
    )
    def test_dgl(self, edge_subgraph: Any, problem: str | None, own_hooks: None) -> None:
        with hooks.stand_in({"dgl": hooks.make_module("dgl", edge_subgraph=edge_subgraph)}):
            needed = models.build_kgat_without_dgl(reports := Reports())()
        ((active, why),) = reports
        assert needed == active == (problem is not None)
        assert (problem or "not needed") in why

    def test_nncf(self, own_hooks: None) -> None:
        class ComputeSimilarity:
            def compute_similarity(self, method: str, block_size: int = 100) -> None:
                """As in RecBole 1.2.0."""

        name = "recbole.model.general_recommender.nncf"
        module = hooks.make_module(name, ComputeSimilarity=ComputeSimilarity)
        with hooks.stand_in({name: module}):
            models.pass_nncf_method(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert vars(module)["ComputeSimilarity"] is ComputeSimilarity

    def test_tree_defaults(self, tmp_path: Path, own_hooks: None) -> None:
        (tmp_path / "config").mkdir()
        (tmp_path / "properties/model").mkdir(parents=True)
        for model in ("XGBoost", "LightGBM"):
            (tmp_path / f"properties/model/{model}.yaml").touch()

        class Own:
            def _load_internal_config_dict(self) -> None:
                """Finds the files."""

        before = vars(Own)["_load_internal_config_dict"]
        name = "recbole.config.configurator"
        module = hooks.make_module(name, Config=Own, __file__=str(tmp_path / "config/configurator.py"))
        with hooks.stand_in({name: module}):
            models.load_tree_defaults(reports := Reports())
        assert [active for active, _ in reports] == [False]
        assert vars(Own)["_load_internal_config_dict"] is before


class TestHooks:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_hooks: None) -> str:
        """A module that imports a package which is not there."""
        (tmp_path / "needy_module.py").write_text("import absent_package\nvalue = absent_package.value\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "needy_module", raising=False)
        return "needy_module"

    def test_stand_in_lasts_for_the_import_only(self, module: str) -> None:
        with pytest.raises(ModuleNotFoundError):
            __import__(module)
        absent = hooks.make_module("absent_package", value=3)
        hooks.around_import(module, "test", lambda: hooks.stand_in({"absent_package": absent}))
        assert __import__(module).value == 3
        assert "absent_package" not in sys.modules
        assert not hooks.is_installed("absent_package")

    def test_actions_run_once_per_execution(self, module: str) -> None:
        import importlib

        seen: list[str] = []
        absent = hooks.make_module("absent_package", value=3)
        hooks.around_import(module, "test", lambda: hooks.stand_in({"absent_package": absent}))
        hooks.after_import(module, "first", lambda loaded: seen.append("first"))
        assert not seen
        loaded = importlib.import_module(module)
        assert seen == ["first"]
        for _ in range(2):  # a patch that comes late acts at once, and only once
            hooks.after_import(module, "late", lambda loaded: seen.append("late"))
        assert seen == ["first", "late"]
        importlib.reload(loaded)
        assert seen == ["first", "late", "first", "late"]

    def test_stand_in_restores_on_error(self) -> None:
        real = sys.modules["pandas"]
        replaced = hooks.make_module("pandas")

        def fail() -> None:
            with hooks.stand_in({"pandas": replaced}):
                assert sys.modules["pandas"] is replaced
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert sys.modules["pandas"] is real

    def test_overlay(self) -> None:
        overlay = hooks.Overlay(builtins, len=lambda values: -1)
        assert overlay.len([1]) == -1 and builtins.len([1]) == 1
        assert overlay.sum is builtins.sum
        with pytest.raises(AttributeError):
            overlay.no_such_name  # noqa: B018

    def test_import_error_names_the_cause(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_module.py").write_text("raise AttributeError('np.bool8 is gone')\n")
        (tmp_path / "needing_module.py").write_text("import no_such_package\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert hooks.import_error("json") is None
        assert hooks.import_error("no_such_package") == "no_such_package is not installed"
        assert hooks.import_error("needing_module") == "needing_module needs no_such_package, which is not installed"
        assert hooks.import_error("broken_module") == "import broken_module raises AttributeError: np.bool8 is gone"
