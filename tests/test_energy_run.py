"""The energy of whole runs: in the journal, the summary and the table, with nothing of the results changed."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from meters import Steady
from test_verdict import ticket
from zoo import DATASET, config_for

from recbole_prune import cli, run_recbole_prune
from recbole_prune.bench.results import read_document
from recbole_prune.metering import machine
from recbole_prune.metering.readings import MeterError, Reading
from recbole_prune.run import measuring
from recbole_prune.run.energy import cost_of_teacher, is_whole, reductions, summary_of_energy, total_cost
from recbole_prune.run.store import RunFolder
from recbole_prune.run.ticket import Ticket

WATTS = 35.5
ABSENT = {part: MeterError("absent", f"no {part}") for part in ("gpu", "dram")}


class RealClock:
    """The clock of this process as :class:`Steady` reads it."""

    @property
    def now(self) -> float:
        return time.perf_counter()


def find_steady(device: Any) -> Any:
    return [Steady(RealClock(), WATTS, "cpu")], ABSENT  # type: ignore[arg-type]


def find_nothing(device: Any) -> Any:
    return [], {**ABSENT, "cpu": MeterError("no_permission", "for root only")}


class Runs:
    """Runs of BPR with one pruned ticket."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder

    def run(self, output: str, find: Any, **changes: Any) -> dict[str, Any]:
        settings = {
            **config_for("BPR", self.data), "pruner": "omp", "prune_target_sparsity": 0.5, "epochs": 3,
            "output_dir": str(self.folder / output), "measure_energy": True, "measure_seconds": 0.05,
            "measure_idle_seconds": 0.02,
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine, "find_sources", find)
            patch.setattr(sys, "argv", ["test"])
            return run_recbole_prune("BPR", DATASET, config_dict={**settings, **changes})


@pytest.fixture(scope="module")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tiny_data, tmp_path_factory.mktemp("energy"))


@pytest.fixture(scope="module")
def measured(runs: Runs) -> dict[str, Any]:
    return runs.run("measured", find_steady, measure_latency_users=4)


@pytest.mark.slow
def test_measuring_changes_neither_results_nor_the_folder(runs: Runs, measured: dict[str, Any]) -> None:
    plain = runs.run("plain", find_nothing, measure_energy=False)
    assert Path(plain["folder"]).name == Path(measured["folder"]).name
    for before, after in zip(plain["tickets"], measured["tickets"]):
        for name in ("valid", "test", "history", "mask_sha256"):
            assert before[name] == after[name], name
        assert before["measured"]["energy"] is None and before["measured"]["latency"] is None
    weights = [(Path(run["artifact"]) / "ticket.safetensors").read_bytes() for run in (plain, measured)]
    assert weights[0] == weights[1]
    assert "energy and power" not in plain["table"]


@pytest.mark.slow
def test_the_journal_says_what_was_measured(measured: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (Path(measured["folder"]) / "tickets.jsonl").read_text().splitlines()]
    for line, dense in zip(lines, (True, False)):
        found = line["measured"]
        energy = found["energy"]
        assert energy["train"]["windows"] == line["epochs"] and energy["validate"]["windows"] == len(line["history"])
        assert energy["train"]["cpu_mean_power_W"] == pytest.approx(WATTS, rel=0.2)
        assert energy["train"]["gpu_energy_J"] is None and energy["train"]["gpu_reason"] == "absent"
        assert energy["recommend"]["lists"] % 120 == 0 and energy["recommend"]["cpu_energy_per_1000_rec_J"] > 0
        assert found["latency"]["users"] == 4 and found["latency"]["latency_median_s"] > 0
        assert found["latency"]["latency_median_s"] <= found["latency"]["latency_p95_s"]
        assert found["live_parameters"] == line["parameters"] - line["prunable"] + line["kept"]
        assert found["bytes_by_format"]["dense"] == 4 * line["parameters"]
        assert (found["bytes_by_format"]["best"] == found["bytes_by_format"]["dense"]) is dense
        assert found["checkpoint_bytes"] == (Path(measured["folder"]) / line["checkpoint_file"]).stat().st_size
        assert found["peak_memory"]["training"]["host_bytes"] > 0
        assert found["peak_memory"]["ranking"]["device_bytes"] is None


@pytest.mark.slow
def test_table_and_summary_add_up(measured: dict[str, Any]) -> None:
    summary = json.loads((Path(measured["folder"]) / "summary.json").read_text())["energy"]
    trained = [line["measured"]["energy"]["train"]["cpu_energy_J"] for line in measured["tickets"]]
    assert summary["training"]["joules"] == pytest.approx(sum(trained))
    text = measured["table"]
    assert "J/1,000 lists" in text and "energy and power of cpu by nvml_counter; not measured: gpu absent" in text
    shown = text[text.index("ticket  train s") : text.index("training of all tickets")]
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_without_a_meter_it_is_said_once_and_why(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    measuring._said.clear()
    with caplog.at_level(logging.WARNING):
        result = runs.run("none", find_nothing, epochs=1)
        runs.run("none", find_nothing, epochs=1, fresh=True)
    said = [record.message for record in caplog.records if "not measured" in record.message]
    assert said == [
        "energy and power: not measured: gpu absent (no gpu); cpu no_permission (for root only); dram absent (no dram)"
    ]
    assert " ".join(result["table"].split()).count("energy and power: not measured") == 1
    train = result["tickets"][0]["measured"]["energy"]["train"]
    assert train["cpu_energy_J"] is None and train["cpu_reason"] == "no_permission" and train["window_s"] > 0


@pytest.mark.slow
def test_a_killed_run_keeps_the_energy_of_its_epochs(runs: Runs) -> None:
    """The meter of the first process ends it in the third epoch; its first two are not measured again."""

    class Killer(Steady):
        left = 7  # two at rest, two for each of two epochs, one before the third

        def read(self) -> list[Reading]:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().read()

    killer = Killer(RealClock(), WATTS, "cpu")  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        runs.run("killed", lambda device: ([killer], ABSENT), pruner="none", prune_target_sparsity=None, eval_step=5)
    result = runs.run("killed", find_steady, pruner="none", prune_target_sparsity=None, eval_step=5)
    train = result["tickets"][0]["measured"]["energy"]["train"]
    assert train["windows"] == 3 and train["cpu_readings"]["good"] == 6


# ---- of journal lines alone ------------------------------------------------------------------------------------------


def costing(number: int, joules: float | None, seconds: float, kept: int = 1000, lists: float = 0.0) -> Ticket:
    """A ticket whose line says what its training took, and 1,000 lists."""
    parts = {"windows": 30, "window_s": seconds, "lists": 1000}
    energy = {"meters": {"gpu": {"method": "nvml_counter"}, "cpu": {"method": None}}, "flags": []}
    for kind, value in (("train", joules), ("validate", None), ("recommend", lists)):
        energy[kind] = {**parts, "gpu_energy_J": value, "gpu_energy_net_J": value, "gpu_reason": None}
    return ticket(
        number, 1 - kept / 1000, kept=kept, prunable=1000, parameters=1000, measured={"energy": energy}
    )  # fmt: skip


def test_the_papers_quantities_of_two_tickets_c8() -> None:
    """75 W for 120 minutes, then 75 W for 40: the 66.67 % are of energy and time, not of power; 45 % are parameters."""
    dense, chosen = costing(0, 540_000, 7200), costing(1, 180_000, 2400, kept=550)
    found = reductions([dense, chosen], chosen, {0: 4000, 1: 2325})
    training = found["training"]
    assert (training.energy, training.power, training.time) == pytest.approx((2 / 3, 0, 2 / 3))
    assert found["size"] == {"parameters": pytest.approx(0.45), "bytes": pytest.approx(0.41875)}
    assert found["all_training"].energy == pytest.approx(-1 / 3), "both trainings were needed"
    assert reductions([dense], dense, {}) == {}, "nothing to compare"


def test_a_method_is_charged_for_all_rounds_and_its_teacher(tmp_path: Path) -> None:
    tickets = [costing(number, 100, 10) for number in range(3)]
    assert total_cost(tickets).joules == 300
    folder = RunFolder(tmp_path / "teacher")
    (tmp_path / "teacher").mkdir()
    folder.open()
    folder.append_ticket(costing(0, 1000, 50).to_record())
    folder.close()
    for path in ("teacher", "teacher/artifact", "teacher/checkpoints/ticket-000.pth"):
        cost = cost_of_teacher({"path": str(tmp_path / path)})
        assert (cost.joules, cost.seconds) == (1000, 50)
    teacher = {"path": "both", "members": [{"path": str(tmp_path / "teacher")}] * 2}
    summary = summary_of_energy(tickets, tickets[1], {}, teacher)
    assert summary["training"] == {"joules": 300, "seconds": 30}
    assert summary["teacher"] == {"joules": 2000, "seconds": 100}
    assert summary["with_teacher"] == {"joules": 2300, "seconds": 130}


def test_what_one_ticket_lacks_is_not_left_out_of_a_sum(tmp_path: Path) -> None:
    tickets = [costing(0, 100, 10), costing(1, None, 10)]
    assert total_cost(tickets).joules is None and total_cost(tickets).seconds == 20
    assert total_cost([ticket(0, 0.0)]).joules is None, "a line of an older version"
    assert cost_of_teacher({"path": str(tmp_path / "lists.tsv")}).joules is None
    assert cost_of_teacher({"path": str(tmp_path / "no" / "artifact")}).joules is None


def test_what_was_measured_in_part_is_not_the_whole() -> None:
    """A process without ``measure_energy`` trained the first epochs; or the next one ran beside other meters."""
    dense, partly = costing(0, 100, 10), costing(1, 20, 2)
    partly.measured["energy"]["train"]["windows"] -= 1
    assert not is_whole(partly) and total_cost([partly]).joules is None
    assert reductions([dense, partly], partly, {})["training"].energy is None
    other = costing(1, 50, 5)
    other.measured["energy"]["meters"]["cpu"] = {"method": "rapl"}
    for kind in ("train", "validate", "recommend"):
        other.measured["energy"][kind].update(cpu_energy_J=30.0, cpu_energy_net_J=30.0, cpu_reason=None)
    assert total_cost([other]).joules == 80 and total_cost([dense, other]).joules is None
    saved = reductions([dense, other], other, {})
    assert saved["training"].energy is None and saved["training"].time == pytest.approx(0.5)


# ---- bench energy ----------------------------------------------------------------------------------------------------


def bench(runs: Runs, find: Any, file: Path, *words: str) -> dict[str, Any]:
    settings = runs.folder / "bench.json"
    settings.write_text(json.dumps(config_for("BPR", runs.data)))
    common = ["--threads=1", "--sparsities=0.5", f"--to={file}", "--model=BPR", f"--dataset={DATASET}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "find_sources", find)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
            patch.setenv(name, "1")
        assert cli.main(["bench", "energy", *common, f"--config_files={settings}", *words]) == 0
    return read_document(file)


def test_a_benchmark_without_a_meter_says_so(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = bench(runs, find_nothing, tmp_path / "found.json")
    shown = capsys.readouterr().out
    assert [line.split()[-2:] for line in shown.splitlines() if " %" in line or " plain" in line] == [
        ["not", "measured"],
        ["not", "measured"],
    ]
    assert "no_permission (for root only)" in shown and document["complete"]
    assert all(candidate["measures"] == {} for candidate in document["candidates"])


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train", "lists"])
def test_a_benchmark_measures_both_sides(runs: Runs, tmp_path: Path, work: str) -> None:
    words = (f"--work={work}", "--repeats=2", "--seconds=0.05", "--rest=0.02")
    document = bench(runs, find_steady, tmp_path / "found.json", *words)
    assert [candidate["name"] for candidate in document["candidates"]] == ["plain", "ours"]
    for candidate in document["candidates"]:
        found = candidate["measures"]
        assert found["watts"]["median"] == pytest.approx(WATTS, rel=0.2)
        assert len(found["joules"]["samples"]) == 2
        for joules, seconds in zip(found["joules"]["samples"], found["seconds"]["samples"]):
            assert joules == pytest.approx(WATTS * seconds, rel=0.2)
    assert document["settings"]["meters"]["cpu"]["method"] == "nvml_counter"
