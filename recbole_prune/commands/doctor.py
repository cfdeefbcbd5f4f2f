"""``recbole-prune doctor``: what is installed, what was patched and why, and which processors there are."""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import NamedTuple

import recbole_prune
from recbole_prune.config.options import refuse_all
from recbole_prune.errors import printable_lines

USAGE = "usage: recbole-prune doctor"


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``problem`` marks what keeps this package from working."""

    text: str
    problem: bool = False


class _Requirement(NamedTuple):
    """A distribution and the versions it may have: from ``oldest`` up to, not including, ``excluded``."""

    name: str
    oldest: tuple[int, ...]
    excluded: tuple[int, ...] | None = None


class _Option(NamedTuple):
    """An optional part: the module to import, the distributions that bring it, what it is for, our extra's name."""

    module: str
    distributions: tuple[str, ...]
    purpose: str
    extra: str


_REQUIREMENTS = (
    _Requirement("recbole", (1, 2, 0), (1, 3)),
    _Requirement("torch", (1, 13)),
    _Requirement("numpy", (1, 21)),
    _Requirement("scipy", (1, 7)),
    _Requirement("pandas", (1, 3), (4,)),
    _Requirement("scikit-learn", (1, 0)),
    _Requirement("safetensors", (0, 4)),
    _Requirement("pyyaml", (5, 4)),
    _Requirement("tqdm", (4, 60)),
)
_OPTIONS = (
    _Option("numba", ("numba",), "compiled kernels on the CPU", "fast"),
    _Option("matplotlib", ("matplotlib",), "figures in reports", "report"),
    _Option("pynvml", ("nvidia-ml-py",), "energy of NVIDIA GPUs", "energy"),
    _Option("faiss", ("faiss-cpu", "faiss-gpu"), "clusters of NCL (scikit-learn's without it)", "ncl"),
    _Option("ray", ("ray",), "compare --engine=ray", "ray"),
    _Option("distributed", ("distributed",), "compare --engine=dask", "dask"),
    _Option("xgboost", ("xgboost",), "RecBole's model XGBoost", "trees"),
    _Option("lightgbm", ("lightgbm",), "RecBole's model LightGBM", "trees"),
)


def examine() -> dict[str, list[Finding]]:
    """Look at the environment; takes some seconds, because RecBole and the optional parts are imported.

    Returns:
        For each section of the report its lines.
    """
    packages = [_examine_requirement(requirement) for requirement in _REQUIREMENTS]
    sections = {
        "Versions": [
            Finding(f"python {platform.python_version()} on {platform.platform()}, {sys.executable}"),
            Finding(f"recbole_prune {recbole_prune.__version__}"),
            *packages,
        ],
        "Optional parts": [_examine_option(option) for option in _OPTIONS],
    }
    missing = [name for name in ("recbole", "torch", "numpy", "scipy", "pandas") if find_spec(name) is None]
    if not missing:
        sections["Patches of RecBole"] = _examine_patches()
        sections["Processors"] = _examine_processors()
    return sections


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version: (2, 13, 0) of 2.13.0+cpu."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match.group().split(".")) if match else ()


def _examine_requirement(requirement: _Requirement) -> Finding:
    name, oldest, excluded = requirement
    allowed = f"needs >= {'.'.join(map(str, oldest))}" + (f", < {'.'.join(map(str, excluded))}" if excluded else "")
    version = _version(name)
    if version is None:
        return Finding(f"{name} is not installed; {allowed}", problem=True)
    release = _release(version)
    if release < oldest or (excluded is not None and release >= excluded):
        return Finding(f"{name} {version}; {allowed}", problem=True)
    return Finding(f"{name} {version}")


def _examine_option(option: _Option) -> Finding:
    purpose = f"for {option.purpose}"
    if find_spec(option.module) is None:
        return Finding(f"{option.module} is not installed; {purpose}: pip install 'recbole-prune[{option.extra}]'")
    version = _version(*option.distributions) or "of unknown version"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(option.module)
    except Exception as error:  # a broken package may raise anything
        return Finding(f"{option.module} {version} does not work, {type(error).__name__}: {error}; {purpose}")
    return Finding(f"{option.module} {version}; {purpose}")


def _examine_patches() -> list[Finding]:
    from recbole_prune import compat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patches, failures = compat.resolve(), compat.import_failures()
    findings = []
    for patch in sorted(patches, key=lambda patch: not patch.active):
        findings.append(Finding(f"{'active  ' if patch.active else 'inactive'} {patch.name}: {patch.why}"))
        if patch.active:
            findings.append(Finding(f"         {patch.cause}"))
    findings += [Finding(f"{module} cannot be imported: {why}", problem=True) for module, why in failures.items()]
    return findings


def _examine_processors() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    findings = [
        Finding(
            f"CPU: {cores} cores for this process, torch uses {torch.get_num_threads()} thread(s)"
            + (f" (OMP_NUM_THREADS={limit})" if limit else "")
        )
    ]
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        findings.append(Finding("CUDA: this torch is built without it"))
    elif not torch.cuda.is_available():
        findings.append(Finding(f"CUDA {torch.version.cuda}: no device found"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        findings.append(
            Finding(
                f"CUDA device {index}: {device.name}, {device.total_memory / 2**30:.1f} GiB, "
                f"compute capability {device.major}.{device.minor}"
            )
        )
    return findings


def _render(sections: dict[str, list[Finding]]) -> str:
    lines = []
    for title, findings in sections.items():
        lines += ["", title, *(("! " if finding.problem else "  ") + finding.text for finding in findings)]
    problems = sum(finding.problem for findings in sections.values() for finding in findings)
    lines += ["", f"{problems} problem(s), marked with !" if problems else "No problem found."]
    return "\n".join(lines[1:])


def report() -> str:
    """The environment as text: versions, optional parts, patches and why, processors.

    Returns:
        Lines under a title per section; a line that begins with ``!`` is a problem.
    """
    return _render(examine())


def main(argv: list[str] | None = None) -> int:
    """Print the report.

    Args:
        argv: arguments after ``doctor``; there are none.

    Returns:
        Exit status: 0, or 2 if something keeps this package from working.

    Raises:
        ConfigError: an argument is unknown.
    """
    refuse_all("doctor", {}, argv or [])
    sections = examine()
    print(printable_lines(_render(sections)))
    return 2 if any(finding.problem for findings in sections.values() for finding in findings) else 0


def usage() -> str:
    """What the command takes."""
    return USAGE
