"""The direction of imports: no circle between files, nothing that runs upwards between rooms (CONTRIBUTING, Layout)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zoo import all_models

import recbole_prune

PACKAGE = Path(recbole_prune.__file__).parent
# a room or a file of the top level may import what stands before it, never what stands after it
ORDER = (
    "errors signals garbage processes methods ranks disk compat sparse anatomy masking data scoring models config "
    "artifact serving metering training run teachers distillers pruners report tuition quick_start bench compare "
    "commands cli"
).split()
FACADE = "__init__"  # imports on first use
WITHOUT_TORCH = [
    "anatomy.prunable",
    "artifact",
    "commands.models",
    "config.options",
    "config.schema",
    "config.settings",
    "config.words",
    "disk.files",
    "disk.lock",
    "disk.names",
    "disk.seals",
    "ranks.launcher",
    "masking.bound",
    "masking.schedule",
    "commands.report",
    "commands.runs",
    "compare.process",
    "report.compare",
    "report.folders",
    "report.page",
    "report.rows",
    "report.runs",
    "report.statistics",
    "report.users",
    "serving",
    "sparse.bipartite",
    "sparse.dense_top_k",
    "signals",
    "sparse.inverted_lists",
]


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return found


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of the package that a syntax tree imports, wherever it does, for types too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("recbole_prune"):
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                names.add(name if name in known else base)
        elif isinstance(node, ast.Import):
            names |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("recbole_prune.")}
    return names - {""}


def arrows() -> dict[str, set[str]]:
    known = modules()
    return {
        name: imports(ast.parse(file.read_text(encoding="utf-8")), set(known)) - {name} for name, file in known.items()
    }


def upward(found: dict[str, set[str]]) -> list[str]:
    """Arrows from a room to a later one, and rooms that have no place in the order."""
    place = {room: number for number, room in enumerate(ORDER)}
    wrong = [f"{name} has no place" for name in found if name.partition(".")[0] not in {*place, FACADE}]
    for name, others in found.items():
        room = name.partition(".")[0]
        for other in sorted(others):
            target = other.partition(".")[0]
            if room in place and place.get(target, len(place)) > place[room]:
                wrong.append(f"{name} -> {other}")
    return wrong


def circle(found: dict[str, set[str]]) -> list[str]:
    """Modules of a circle; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        for other in sorted(found.get(name, ())):
            ring = visit(other, [*way, name])
            if ring:
                return ring
        done.add(name)
        return []

    return next((ring for name in sorted(found) if (ring := visit(name, []))), [])


def test_no_import_runs_upwards() -> None:
    assert upward(arrows()) == []


def test_no_circle() -> None:
    assert circle(arrows()) == []


def test_the_checks_can_fail() -> None:
    assert upward({"sparse.rows": {"run.store"}, "attic.old": set()}) == [
        "attic.old has no place",
        "sparse.rows -> run.store",
    ]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_every_room_says_what_it_is_for() -> None:
    for file in sorted(PACKAGE.rglob("__init__.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        assert len(text.split()) >= 8, file


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_importable_without_torch_and_recbole(name: str) -> None:
    code = f"import sys, recbole_prune.{name}; print([m for m in ('torch', 'recbole', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def needs(name: str, found: dict[str, list[str]], seen: dict[str, None] | None = None) -> dict[str, None]:
    """A module and what it imports while it is imported, packages around each included, by full names."""
    seen = {} if seen is None else seen
    for module in [name, *found[name]]:
        parts = module.split(".")
        for around in [".".join(parts[:number]) for number in range(1, len(parts) + 1)]:
            if around not in seen:
                seen[around] = None
                needs(around, found, seen)
    return seen


def imported_at_once() -> dict[str, list[str]]:
    """By full name what of the package each module imports outside of functions and not for types only."""
    known, found = modules(), {}
    for name, file in known.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                node.body = []
        found[full(name)] = [full(other) for other in sorted(imports(tree, set(known)) - {name})]
    return found


def full(name: str) -> str:
    return PACKAGE.name if name == FACADE else f"{PACKAGE.name}.{name}"


# other people's packages come first once; RecBole, which compat prepares, is imported where ours do. A module is
# imported in a process forked from one that has imported a part of what it needs and nothing else of ours: its own
# code finds what it needs and no more, as where it is imported first, and little is imported more than once
FIRST = """
import importlib, json, os, sys, traceback
for heavy in ("torch", "pandas", "scipy.sparse", "sklearn.metrics", "torch.utils.tensorboard", "numba"):
    try:
        importlib.import_module(heavy)
    except ImportError:
        pass
assert not [name for name in sys.modules if name.startswith("recbole")]
children, needed = json.load(sys.stdin)

def visit(parent):
    for module in children.get(parent, ()):
        child = os.fork()
        if not child:
            try:
                importlib.import_module(module)
                loaded = {name for name in sys.modules if name.partition(".")[0] == "recbole_prune"}
                assert loaded == set(needed[module]), loaded ^ set(needed[module])
                print(module, flush=True)
            except BaseException:
                print(module, repr(traceback.format_exc()), flush=True)
            visit(module)
            os._exit(0)
        os.waitpid(child, 0)

visit("")
"""


def import_each_first(needed: dict[str, list[str]]) -> list[str]:
    """Import each module where what it needs and nothing else of ours is imported; its name if that works, errors."""
    children: dict[str, list[str]] = {}
    for name, parts in needed.items():
        before = [part for part in parts if len(needed[part]) < len(parts)]  # a package may import its own modules
        children.setdefault(max(before, key=lambda part: len(needed[part]), default=""), []).append(name)
    command = [sys.executable, "-W", "ignore", "-c", FIRST]
    done = subprocess.run(command, input=json.dumps([children, needed]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_every_module_can_be_imported_first() -> None:
    """No order of imports carries meaning."""
    found = imported_at_once()
    needed = {name: list(needs(name, found)) for name in found}
    attic = full("attic")
    printed = import_each_first({**needed, attic: [attic]})
    [failed] = set(printed) - set(needed)
    assert failed.startswith(f"{attic} ") and "ModuleNotFoundError" in failed
    assert len(printed) == len(needed) + 1


def sources() -> dict[str, ast.Module]:
    """The syntax tree of every module by its path below the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def uses(tree: ast.AST, name: str) -> bool:
    """Whether code (no text) calls ``name(...)`` or reads ``something.name``."""
    return any(
        (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name)
        or (isinstance(node, ast.Attribute) and node.attr == name)
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("name", ["print", "argv"])
def test_only_commands_print_and_read_the_command_line(name: str) -> None:
    assert {path.split("/")[0] for path, tree in sources().items() if uses(tree, name)} == {"commands"}


def test_only_anatomy_knows_single_models() -> None:
    """Names of RecBole's model classes, and of what only some of them have, stand in no other code."""
    known = {"update_attentive_A", "e_step", "token_field_dims", "calculate_rs_loss", "calculate_kg_loss"}
    known |= {"encoder_flag", "restore_user_e", "restore_item_e", "user_embedding", "item_embedding", *all_models()}
    found = set()
    for path, tree in sources().items():
        if path.split("/")[0] in ("anatomy", "compat", "models"):
            continue
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found |= {(path, name) for name in (texts | names) & known}
    assert found == {("config/words.py", "BPR")}  # the default of RecBole's launcher


def definitions(node: ast.AST, public: bool = True) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, bool]]:
    """Every function and class, and whether it can be reached by names without an underscore."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            named = public and not child.name.startswith("_")
            yield child, named
            yield from definitions(child, named and isinstance(child, ast.ClassDef))
        else:
            yield from definitions(child, public)


def test_public_functions_are_documented_and_all_are_annotated() -> None:
    for path, tree in sources().items():
        for node, public in definitions(tree):
            place = f"{path}:{node.lineno} {node.name}"
            assert not public or ast.get_docstring(node), place
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, place
                assert all(a.annotation for a in parameters(node) if a.arg not in ("self", "cls")), place


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [*named, *filter(None, (arguments.vararg, arguments.kwarg))]


def test_types_say_something() -> None:
    """Parameters typed Any, and errors of the type checker that are ignored: there may be fewer, never more."""
    functions = [node for tree in sources().values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    annotations = [a.annotation for node in functions for a in parameters(node) if a.annotation is not None]
    assert sum(ast.unparse(annotation) == "Any" for annotation in annotations) <= 101
    texts = [file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")]
    assert sum(text.count("type: ignore") for text in texts) <= 45
