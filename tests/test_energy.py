"""The energy of windows: what is read when, what is added up, what is said without a meter."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from meters import Clock, FakeNvml, Steady, zeusd_server, zone

from recbole_prune.metering import machine
from recbole_prune.metering.accounts import per_thousand
from recbole_prune.metering.company import CpuTimes, is_shared, read_cpu_times
from recbole_prune.metering.energy import EnergyMeter
from recbole_prune.metering.machine import find_sources
from recbole_prune.metering.nvml import Board
from recbole_prune.metering.readings import MeterError, Reading, sampled
from recbole_prune.metering.reductions import JOULES_PER_WATT_HOUR, Cost, reduction

MISSING = {part: MeterError("absent", f"no {part}") for part in ("cpu", "dram")}
CPU, CUDA = (SimpleNamespace(type=kind, index=0) for kind in ("cpu", "cuda"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def meter(clock: Clock, *sources: Any, **settings: Any) -> EnergyMeter:
    return EnergyMeter(sources, MISSING, "cuda:0", clock=clock, sleep=clock.sleep, **settings)


def worked(found: EnergyMeter, clock: Clock, seconds: float, kind: str = "train") -> None:
    with found.window(kind):
        clock.sleep(seconds)


def test_gross_net_and_power(clock: Clock) -> None:
    board = Steady(clock, watts=20)
    found = meter(clock, board)
    found.begin()
    board.watts = 86.875
    for seconds in (1.0, 0.4, 0.6):
        worked(found, clock, seconds)
    board.watts = 20
    record = found.record()
    train = record["train"]
    assert train["gpu_energy_J"] == pytest.approx(2 * 86.875)
    assert train["gpu_energy_net_J"] == pytest.approx(2 * (86.875 - 20))
    assert train["gpu_mean_power_W"] == pytest.approx(86.875)
    assert train["gpu_energy_per_epoch_J"] == pytest.approx(0.5 * 86.875), "of the epochs but the first"
    assert train["gpu_energy_per_epoch_std_J"] == pytest.approx(0.2 / 2**0.5 * 86.875)
    assert (train["windows"], train["window_s"]) == (3, pytest.approx(2.0))
    assert record["gpu_idle_W"] == pytest.approx(20)
    assert record["validate"]["gpu_energy_J"] is None, "nothing was validated"
    assert record["flags"] == ["short_windows"]
    json.dumps(record, allow_nan=False)


def test_a_part_without_a_meter_is_null_with_its_reason(clock: Clock) -> None:
    found = meter(clock, Steady(clock, 50))
    found.begin()
    worked(found, clock, 30)
    record = found.record()
    assert record["meters"]["cpu"] == {"method": None, "reason": "absent", "detail": "no cpu"}
    assert record["train"]["cpu_energy_J"] is None and record["train"]["cpu_reason"] == "absent"
    assert record["train"]["gpu_reason"] is None and record["flags"] == []


def test_without_any_meter_nothing_is_waited_for(clock: Clock) -> None:
    found = EnergyMeter([], {"gpu": MISSING["cpu"], **MISSING}, "cpu", clock=clock, sleep=clock.sleep)
    found.begin()
    worked(found, clock, 3)
    record = found.record()
    assert clock.now == 3, "no rest"
    found.recommend(lambda: 5)
    assert found.record()["recommend"]["lists"] == 15, "seconds of three passes"
    assert not found.has_meters
    assert record["train"]["window_s"] == 3
    assert {record["train"][f"{part}_energy_J"] for part in ("gpu", "cpu", "dram")} == {None}


def test_energy_of_lists_c9(clock: Clock) -> None:
    assert per_thousand(12.5, 50_000) == pytest.approx(0.25)
    found = meter(clock, Steady(clock, 25))
    found.begin()

    def work(seconds: float, lists: int = 1000) -> int:
        clock.sleep(seconds)
        return lists

    found.recommend(lambda: work(0.5))
    record = found.record()["recommend"]
    assert (record["lists"], record["window_s"]) == (40_000, pytest.approx(20)), (
        "20 seconds, the first pass not counted"
    )
    assert record["gpu_energy_per_1000_rec_J"] == pytest.approx(25 * 20 / 40)
    found.begin()
    found.recommend(lambda: work(600))
    assert found.record()["recommend"]["lists"] == 3000, "three passes at least"
    found.begin()
    found.recommend(lambda: work(1, lists=0))
    assert found.record()["recommend"]["windows"] == 0


def test_a_drifting_idle_baseline_is_said(clock: Clock) -> None:
    board = Steady(clock, 20)
    found = meter(clock, board)
    found.begin()
    worked(found, clock, 30)
    board.watts = 22
    assert found.record()["flags"] == ["drift"]
    found.begin()
    worked(found, clock, 30)
    assert found.record()["flags"] == [], "the rest after a ticket is the one before the next"


def test_another_process_on_the_board_costs_the_number(clock: Clock) -> None:
    board = Steady(clock, 50)
    found = meter(clock, board)
    found.begin()
    board.company = "1 other process"
    worked(found, clock, 30)
    train = found.record()["train"]
    assert (train["gpu_energy_J"], train["gpu_reason"]) == (None, "contaminated")


def test_one_window_without_a_number_leaves_no_sum(clock: Clock) -> None:
    board = Steady(clock, 50)
    found = meter(clock, board)
    found.begin()
    worked(found, clock, 30)
    board.fails = "read_error"
    worked(found, clock, 30)
    board.fails = None
    worked(found, clock, 30)
    train = found.record()["train"]
    assert (train["gpu_energy_J"], train["gpu_reason"]) == (None, "read_error")
    assert train["gpu_energy_per_epoch_J"] == pytest.approx(1500), "of the epochs that have one"
    assert train["gpu_readings"] == {"good": 4, "failed": 2, "wraps": 0}


@pytest.mark.parametrize(("own", "shared"), [(29.0, False), (20.0, True)])
def test_other_processes_on_the_processors_are_said(clock: Clock, own: float, shared: bool) -> None:
    """Their meters are of the whole socket; nearly every machine has some of them, so the number stays."""
    found = EnergyMeter(
        [Steady(clock, 30, "cpu")], {"gpu": MISSING["cpu"]}, "cpu", clock=clock, sleep=clock.sleep, idle_seconds=0,
        cpu_times=lambda: CpuTimes(clock.now, own / 30 * clock.now),
    )  # fmt: skip
    found.begin()
    worked(found, clock, 30)
    record = found.record()
    assert record["flags"] == (["shared_cpu"] if shared else [])
    assert record["train"]["cpu_energy_J"] == pytest.approx(900)


def test_who_works_while_the_machine_rests_says_nothing_of_the_work(clock: Clock) -> None:
    found = EnergyMeter(
        [Steady(clock, 30, "cpu")], {"gpu": MISSING["cpu"]}, "cpu", clock=clock, sleep=clock.sleep, idle_seconds=10,
        cpu_times=lambda: CpuTimes(clock.now, max(0.0, min(clock.now - 10, 30.0))),
    )  # fmt: skip
    found.begin()
    worked(found, clock, 30)
    assert "shared_cpu" not in found.record()["flags"]


def test_times_of_the_processors() -> None:
    before = read_cpu_times()
    if before is None:
        pytest.skip("no /proc/stat")
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    after = read_cpu_times()
    assert after is not None and after.own - before.own >= 0.03 and after.busy >= before.busy > 0
    assert not is_shared(before, None)


def test_a_meter_that_breaks_costs_its_number_only(clock: Clock) -> None:
    class Broken(Steady):
        def read(self) -> list[Reading]:
            raise RuntimeError("the library is gone")

        def others(self) -> str | None:
            raise AttributeError("an older library")

    found = meter(clock, Broken(clock, 50))
    found.begin()
    worked(found, clock, 30)
    train = found.record()["train"]
    assert (train["gpu_energy_J"], train["gpu_reason"]) == (None, "read_error")


def test_an_evaluation_without_lists_has_no_energy_of_lists(clock: Clock) -> None:
    found = meter(clock, Steady(clock, 50))
    found.begin()
    record = found.record()["recommend"]
    assert (record["gpu_energy_per_1000_rec_J"], record["gpu_reason"]) == (None, "unsupported")


def test_counters_of_one_part_are_added(clock: Clock) -> None:
    found = EnergyMeter(
        [Steady(clock, 30, "cpu"), Steady(clock, 40, "cpu")], {"gpu": MISSING["cpu"]}, "cpu", clock=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    found.begin()
    worked(found, clock, 30)
    assert found.record()["train"]["cpu_energy_J"] == pytest.approx(2100)


def test_the_device_is_waited_for_at_both_edges(clock: Clock) -> None:
    """Work that is queued before a window is not charged to it, and work that is queued in it is."""
    board, queue = Steady(clock, 50), [7.0]

    def synchronize() -> None:
        while queue:
            clock.sleep(queue.pop())

    found = meter(clock, board, synchronize=synchronize, idle_seconds=0)
    found.begin()
    with found.window("train"):
        queue.append(10.0)
    record = found.record()
    assert record["train"]["window_s"] == pytest.approx(10.0)
    assert record["train"]["gpu_energy_J"] == pytest.approx(500)
    assert record["train"]["gpu_energy_net_J"] is None, "nothing is known of the machine at rest"


def test_a_window_that_fails_is_forgotten(clock: Clock) -> None:
    found = meter(clock, Steady(clock, 50))
    found.begin()
    with pytest.raises(ZeroDivisionError), found.window("train"):
        raise ZeroDivisionError
    assert found.record()["train"]["windows"] == 0


def test_a_killed_training_keeps_its_windows(clock: Clock) -> None:
    first, second = (meter(clock, Steady(clock, 50)) for _ in range(2))
    first.begin()
    worked(first, clock, 30)
    state = json.loads(json.dumps(first.state()))
    second.begin()
    second.restore(state)
    worked(second, clock, 60)
    assert second.record()["train"]["gpu_energy_J"] == pytest.approx(4500)
    second.restore(None)  # of a run that measured nothing


def test_power_is_sampled_inside_a_window() -> None:
    """With the real clock: a thread reads, and ends with the window."""

    class Sampler(Steady):
        method, period = "nvml_sampling", 0.01

        def read(self) -> list[Reading]:
            self.raw += 1
            return [Reading(self.raw, 50_000)]  # a second for each sample

        def energy(self, readings: Any) -> Any:
            return sampled(readings, 1000, longest_gap=1)

    sampler = Sampler(Clock(), 0)
    found = EnergyMeter([sampler], MISSING, "cuda:0", idle_seconds=0)
    found.begin()
    with found.window("train"):
        time.sleep(0.1)
    samples = sampler.raw
    record = found.record()["train"]
    assert samples > 2, "more than the edges"
    assert record["gpu_energy_J"] == pytest.approx(50 * (samples - 1))
    time.sleep(0.05)
    assert sampler.raw == samples


# ---- which meters there are ------------------------------------------------------------------------------------------


def test_what_can_be_read_here_goes_before_the_daemon(tmp_path: Path) -> None:
    zone(zone(tmp_path / "intel-rapl:0", "package-0") / "intel-rapl:0:0", "dram")
    sources, missing = find_sources(CPU, {}, tmp_path)
    assert [source.method for source in sources] == ["rapl"]
    assert {part: error.reason for part, error in missing.items()} == {"gpu": "absent"}


def test_the_daemon_reads_what_is_for_root_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: str, headers: dict[str, str]) -> tuple[int, Any]:
        if path == "/discover":
            return 200, {"cpus": [{"id": 0}], "gpus": [], "enabled_api_groups": ["cpu-read"]}
        if "Authorization" not in headers:
            return 401, {}
        return 200, {"0": {"cpu_energy_uj": 5, "dram_energy_uj": None}}

    zone(tmp_path / "powercap" / "intel-rapl:0", "package-0", energy=None)
    place = {"ZEUSD_SOCK_PATH": str(tmp_path / "z.sock")}
    with zeusd_server(tmp_path / "z.sock", answer):
        sources, missing = find_sources(CPU, {**place, "ZEUSD_TOKEN": "T"}, tmp_path / "powercap")
        assert [source.method for source in sources] == ["zeusd"]
        assert missing["dram"].detail == "the memory has no counter of its own"
        _, missing = find_sources(CPU, place, tmp_path / "powercap")
        assert missing["cpu"].reason == "no_permission", "the daemon's reason where there is one"
    _, missing = find_sources(CPU, place, tmp_path / "powercap")
    assert missing["cpu"].reason == "absent"
    assert "no zeusd at" in missing["cpu"].detail


def test_the_board_of_the_device_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(["GPU-a", "GPU-b"])
    monkeypatch.setattr(machine.nvml, "load", lambda: fake)
    monkeypatch.setattr(machine.nvml, "board_of", lambda device: Board(device.index, uuid="b"))
    sources, missing = find_sources(CUDA, {}, tmp_path)
    assert [(source.method, source.details["name"]) for source in sources] == [("nvml_counter", "board GPU-b")]
    assert set(missing) == {"cpu", "dram"}


# ---- the papers' quantities ------------------------------------------------------------------------------------------


def test_power_energy_and_time_apart_c8() -> None:
    before, after = Cost(75.0 * 7200, 7200.0), Cost(75.0 * 2400, 2400.0)
    assert (before.joules, after.joules) == (540_000, 180_000)
    assert [cost.joules / JOULES_PER_WATT_HOUR for cost in (before, after)] == [150, 50]
    found = reduction(before, after)
    assert found.power == 0
    assert 100 * found.energy == pytest.approx(66.666667)
    assert 100 * found.time == pytest.approx(66.666667)


def test_energy_is_the_product_of_power_and_time() -> None:
    found = reduction(Cost(100.0, 10.0), Cost(80.0, 16.0))
    assert (1 - found.energy) == pytest.approx((1 - found.power) * (1 - found.time))
    assert found.time == pytest.approx(-0.6), "it took longer"


def test_what_is_not_known_is_no_reduction() -> None:
    found = reduction(Cost(None, 10.0), Cost(80.0, 5.0))
    assert (found.energy, found.power, found.time) == (None, None, 0.5)
    assert (Cost(1.0, 2.0) + Cost(None, 3.0)) == Cost(None, 5.0)
