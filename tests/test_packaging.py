"""What is built and declared: the wheel's contents, the dependencies, the top level of the repository."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CONTRIBUTING.md",
    "recbole_prune",
    "properties",
    "run_recbole_prune.py",
    "tests",
}
# module -> the distribution that brings it, where the names differ
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "faiss": "faiss-cpu", "pynvml": "nvidia-ml-py"}
# KGAT uses dgl < 1.0 where a user has it; nothing installs it, since there is no build of it for current Python
UNDECLARED = {"dgl"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


scans_imports = pytest.mark.skipif(
    sys.version_info < (3, 10), reason="Python 3.9 cannot list the modules of its standard library"
)


class Import(NamedTuple):
    """A third-party module that a file imports, and whether importing the file is enough to import it."""

    distribution: str
    file: str
    at_once: bool


def imports_of(source: str, file: str) -> Iterator[Import]:
    tree = ast.parse(source)
    at_once = set(_run_on_import(tree))
    for_types = {node for test in ast.walk(tree) if _for_types(test) for node in ast.walk(test)}
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        for module in {name.split(".")[0] for name in modules}:
            if module not in {*sys.stdlib_module_names, "recbole_prune"} and module not in UNDECLARED:
                yield Import(canonicalize_name(DISTRIBUTIONS.get(module, module)), file, node in at_once)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes outside functions; a ``try`` guards what it holds, and ``if TYPE_CHECKING`` never runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Try)):
            continue
        if _for_types(child):
            continue
        yield child
        yield from _run_on_import(child)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    files = sorted((ROOT / "recbole_prune").rglob("*.py"))
    return [found for file in files for found in imports_of(file.read_text(encoding="utf-8"), file.name)]


@scans_imports
def test_every_import_is_declared(imports: list[Import]) -> None:
    """What any function imports is a dependency or in an extra, so nothing works by luck of another package."""
    declared = names(project()["dependencies"])
    for extra, requirements in project()["optional-dependencies"].items():
        declared |= names(requirements) if extra != "test" else set()
    assert not {found for found in imports if found.distribution not in declared}


@scans_imports
def test_importing_a_module_needs_only_the_core_dependencies(imports: list[Import]) -> None:
    core = names(project()["dependencies"])
    assert not {found for found in imports if found.at_once and found.distribution not in core}


@scans_imports
def test_every_core_dependency_is_imported(imports: list[Import]) -> None:
    assert names(project()["dependencies"]) <= {found.distribution for found in imports}


@scans_imports
def test_scan_sees_imports_of_every_form() -> None:
    source = (
        "import numpy.linalg, os\nfrom recbole_prune import masks\nfrom . import scope\n"
        "def late():\n    from sklearn.cluster import KMeans\n"
        "try:\n    import numba\nexcept ImportError:\n    numba = None\n"
        "class A:\n    import absent\n"
    )
    assert set(imports_of(source, "f.py")) == {
        Import("numpy", "f.py", True),
        Import("scikit-learn", "f.py", False),
        Import("numba", "f.py", False),
        Import("absent", "f.py", True),
    }


@pytest.mark.parametrize("name", ["numpy", "scipy", "torch"])
def test_no_upper_bound(name: str) -> None:
    """RecBole's breaks on newer versions are patched; a cap would force a downgrade on the user's other packages."""
    specifiers = {r.name: r.specifier for r in map(Requirement, project()["dependencies"])}[name]
    assert {specifier.operator for specifier in specifiers} == {">="}


def constraints(name: str) -> dict[str, str]:
    lines = (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in pinned}


def test_constraints_name_everything_that_the_test_run_installs() -> None:
    requirements = [*project()["dependencies"], *project()["optional-dependencies"]["test"]]
    python = {"python_version": "3.11"}
    required = [r for r in map(Requirement, requirements) if not r.marker or r.marker.evaluate(python)]
    pinned = constraints("constraints.txt")
    assert {r.name for r in required if not r.specifier.contains(pinned.get(canonicalize_name(r.name), ""))} == set()


def test_oldest_set_is_the_lower_bounds() -> None:
    """Each lower bound is the tested version but for its patch level; RecBole's own floor differs only in models."""
    pinned = constraints("constraints-oldest.txt")
    for requirement in map(Requirement, project()["dependencies"]):
        floor = next(s.version for s in requirement.specifier if s.operator == ">=")
        tested = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(tested), requirement
        assert tested.split(".")[:2] == floor.split(".")[:2], requirement


def test_top_level_holds_nothing_else() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode != 0:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    found = {line.split("/")[0] for line in listing.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} == TOP_LEVEL


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the sdist, as an index would get it."""
    for module in ("build", "hatchling"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[test]'")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def test_wheel_holds_the_package_and_its_properties(wheel: zipfile.ZipFile) -> None:
    """All files of the package and of properties/, byte for byte, and nothing beside them."""
    files = [file for file in (ROOT / "recbole_prune").rglob("*") if "__pycache__" not in file.parts and file.is_file()]
    expected = {str(file.relative_to(ROOT)): file for file in files}
    expected |= {f"recbole_prune/{file.relative_to(ROOT)}": file for file in (ROOT / "properties").rglob("*.yaml")}
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == set(expected)
    assert not {name for name, file in expected.items() if wheel.read(name) != file.read_bytes()}


def test_wheel_declares_command_licence_and_dependencies(wheel: zipfile.ZipFile) -> None:
    info = {name.split("/", 1)[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "recbole-prune = recbole_prune.cli:main" in wheel.read(info["entry_points.txt"]).decode()
    assert "licenses/LICENSE" in info
    metadata = message_from_bytes(wheel.read(info["METADATA"]))
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.9"
    required = [text for text in metadata.get_all("Requires-Dist") or [] if "extra ==" not in text]
    assert names(required) == names(project()["dependencies"])


def test_installed_layout_finds_its_properties(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, the package reads the property files inside it, not those of the checkout."""
    wheel.extractall(tmp_path / "site")
    code = "from recbole_prune.config import paths as p; print(p.properties_dir()); print(p.property_names('pruner'))"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, pruners = done.stdout.splitlines()
    assert Path(folder) == tmp_path / "site" / "recbole_prune" / "properties"
    assert "'imp'" in pruners


@pytest.mark.parametrize("command", [["-m", "recbole_prune.cli"], ["run_recbole_prune.py"]])
def test_both_entries_are_the_same_command(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command, "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown command 'nonsense'" in done.stderr
