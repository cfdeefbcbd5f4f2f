"""``recbole-prune doctor`` names versions, optional parts, patches with their reasons, processors and problems."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recbole_prune import cli, compat
from recbole_prune.commands import doctor
from recbole_prune.errors import ConfigError


@pytest.fixture(scope="module")
def text() -> str:
    return doctor.report()


def test_versions(text: str) -> None:
    assert f"python {platform.python_version()}" in text
    for name in ("recbole", "torch", "numpy", "scipy", "pandas", "safetensors"):
        assert f"  {name} {metadata.version(name)}\n" in text


def test_every_patch_with_its_state_and_reason(text: str) -> None:
    for patch in compat.status():
        state = "active  " if patch.active else "inactive"
        assert f"  {state} {patch.name}: {patch.why}\n" in text
        assert (patch.cause in text) == patch.active
        assert "not decided" not in patch.why


def test_optional_parts_with_their_purpose(text: str) -> None:
    for option in doctor._OPTIONS:
        assert re.search(rf"^  {option.module} .*; for {re.escape(option.purpose)}", text, re.MULTILINE)


def test_requirements_are_those_of_the_package() -> None:
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    declared = re.search(r"^dependencies = \[(.*?)^\]", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert declared

    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(number) for number in version.split("."))

    expected = set()
    for name, oldest, excluded in re.findall(r'"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?"', declared.group(1)):
        expected.add((name, numbers(oldest), numbers(excluded) if excluded else None))
    assert {tuple(requirement) for requirement in doctor._REQUIREMENTS} == expected


def test_extras_are_those_of_the_package() -> None:
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for option in doctor._OPTIONS:
        line = re.search(rf"^{option.extra} = \[(.*)\]$", text, re.MULTILINE)
        assert line and f'"{option.distributions[0]}"' in line.group(1)


def test_processors(text: str) -> None:
    assert f"torch uses {torch.get_num_threads()} thread(s)" in text
    assert ("CUDA device 0" in text) == torch.cuda.is_available()


def test_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="Some GPU", total_memory=24 * 2**30, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    lines = [finding.text for finding in doctor._examine_processors()]
    assert "CUDA device 0: Some GPU, 24.0 GiB, compute capability 8.6" in lines


@pytest.mark.parametrize(
    ("version", "text", "problem"),
    [
        (None, "recbole is not installed; needs >= 1.2.0, < 1.3", True),
        ("1.1.1", "recbole 1.1.1; needs >= 1.2.0, < 1.3", True),
        ("1.3", "recbole 1.3; needs >= 1.2.0, < 1.3", True),
        ("1.2.0", "recbole 1.2.0", False),
        ("1.2.1", "recbole 1.2.1", False),
    ],
)
def test_supported_versions(version: Any, text: str, problem: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda *names: version)
    finding = doctor._examine_requirement(doctor._Requirement("recbole", (1, 2, 0), (1, 3)))
    assert finding == doctor.Finding(text, problem)


def test_a_broken_optional_part_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_part.py").write_text("raise OSError('libomp.so is missing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor._examine_option(doctor._Option("broken_part", ("broken-part",), "tests", "none"))
    assert finding.text == "broken_part of unknown version does not work, OSError: libomp.so is missing; for tests"


def test_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: {"Versions": [doctor.Finding("all here")]})
    assert doctor.main([]) == 0
    assert capsys.readouterr().out == "Versions\n  all here\n\nNo problem found.\n"
    monkeypatch.setattr(doctor, "examine", lambda: {"Versions": [doctor.Finding("no torch", problem=True)]})
    assert doctor.main([]) == 2
    assert capsys.readouterr().out == "Versions\n! no torch\n\n1 problem(s), marked with !\n"


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--help"]) == 0
    assert "usage: recbole-prune doctor" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="'--gpu=1'"):
        doctor.main(["--gpu=1"])


def test_import_failures_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "import_failures", lambda: {"recbole.trainer": "needs hyperopt"})
    assert doctor.Finding("recbole.trainer cannot be imported: needs hyperopt", True) in doctor._examine_patches()
