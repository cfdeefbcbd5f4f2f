"""Readers of energy and power, against the numbers worked out in the method files (C1 to C9, D1 to D9)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from meters import RANGE, FakeNvml, zeusd_server, zone

from recbole_prune.metering import nvml, zeusd
from recbole_prune.metering.nvml import Board, Nvml
from recbole_prune.metering.rapl import HIGHEST_POWER, Rapl
from recbole_prune.metering.readings import REASONS, Energy, MeterError, Reading, counted, sampled, unwrapped

FAILURE = None


def trace(*points: tuple[float, int | None]) -> list[Reading]:
    """Readings of (seconds, number); None is one that failed."""
    return [Reading(time, raw, "read_error" if raw is None else None) for time, raw in points]


def rapl(*points: tuple[float, int | None], most: int | None = RANGE) -> Energy:
    return unwrapped(trace(*points), most, HIGHEST_POWER, per_joule=1e6)


# ---- what readings add up to -----------------------------------------------------------------------------------------


def test_counter_of_a_board_c1() -> None:
    energy = counted(trace((0.0, 1_000_000), (0.4, 1_034_750)), 1000, "driver_reload")
    assert energy.joules == pytest.approx(34.75)
    assert energy.joules / 0.4 == pytest.approx(86.875)
    assert energy.joules - 20 * 0.4 == pytest.approx(26.75)


def test_samples_of_power_c2() -> None:
    samples = trace((0.0, 60_000), (0.1, 80_000), (0.25, 100_000), (0.4, 90_000))
    assert sampled(samples, 1000, longest_gap=1).joules == pytest.approx(34.75)


def test_samples_too_far_apart_are_a_gap() -> None:
    assert sampled(trace((0.0, 60_000), (0.5, FAILURE), (1.2, 80_000)), 1000, longest_gap=1).reason == "gap"
    bridged = sampled(trace((0.0, 60_000), (0.5, FAILURE), (0.9, 80_000)), 1000, longest_gap=1)
    assert (bridged.joules, bridged.good, bridged.failed) == (pytest.approx(63.0), 2, 1)
    assert sampled(trace((0.0, 60_000), (0.9, FAILURE)), 1000, longest_gap=1).reason == "read_error"


def test_a_counter_that_wrapped_c3() -> None:
    energy = rapl((0.0, 262_143_000_000), (1.0, 1_000_000))
    assert energy.joules == pytest.approx(1.328850)
    assert energy.wraps == 1


def test_a_drop_without_a_range_c4() -> None:
    assert rapl((0.0, 262_143_000_000), (1.0, 1_000_000), most=None) == Energy(None, "unsupported", 2, 0)
    assert rapl((0.0, 1_000_000), (1.0, 3_000_000), most=None).joules == pytest.approx(2.0)


def test_a_counter_that_has_not_moved_c7() -> None:
    still = trace((0.0, 5), (0.05, 5))
    assert counted(still, 1000, "driver_reload") == Energy(None, "window_too_short", 2, 0)
    assert rapl((0.0, 5), (0.05, 5)).reason == "window_too_short"
    assert rapl((0.0, 5), (1.0, 5)).reason == "stuck"


def test_driver_reload() -> None:
    assert counted(trace((0.0, 1_000_000), (30.0, 4)), 1000, "driver_reload").reason == "driver_reload"
    # it went back and has passed its start since
    assert counted(trace((0.0, 1_000), (1.0, 4), (30.0, 2_000)), 1000, "driver_reload").reason == "driver_reload"


def test_unreadable_is_not_wrapped_d1() -> None:
    energy = rapl((0.0, 262_143_000_000), (1.0, FAILURE), (2.0, 1_000_000))
    assert energy == Energy(pytest.approx(1.328850), None, good=2, failed=1, wraps=1)
    # what another reader makes 261,143 J of
    assert rapl((0.0, 1_000_000_000), (1.0, FAILURE), (2.0, 1_020_000_000)).joules == pytest.approx(20.0)


def test_a_reset_is_not_wrapped_d2() -> None:
    assert rapl((0.0, 200_000_000_000), (10.0, 5_000_000)).reason == "counter_reset"


def test_one_wrap_d3() -> None:
    energy = rapl((0.0, 200_000_000_000), (120.0, 5_000_000))
    assert (energy.joules, energy.wraps) == (pytest.approx(62_148.328850), 1)


def test_gap_d4() -> None:
    assert rapl((0.0, 5_000_000), (100.0, FAILURE), (200.0, 9_000_000)).reason == "gap"
    assert rapl((0.0, 5_000_000), (100.0, FAILURE), (130.0, 9_000_000)).joules == pytest.approx(4.0)


@pytest.mark.parametrize("readings", [[(0.0, FAILURE), (1.0, 5_000_000)], [(0.0, 5_000_000), (1.0, FAILURE)]])
def test_a_window_needs_both_edges(readings: Sequence[tuple[float, int | None]]) -> None:
    assert rapl(*readings).reason == "read_error"
    assert counted(trace(*readings), 1000, "driver_reload").reason == "read_error"


# ---- RAPL ------------------------------------------------------------------------------------------------------------


def joules_of(source: Any, first: Sequence[Reading], last: Sequence[Reading]) -> dict[str, float | None]:
    return {
        channel.name: channel.energy([before, after]).joules
        for channel, before, after in zip(source.channels, first, last)
    }


def test_zones_that_contain_each_other_c6(tmp_path: Path) -> None:
    package = zone(tmp_path / "intel-rapl:0", "package-0")
    zones = {
        package: 10,
        zone(package / "intel-rapl:0:0", "core"): 4,
        zone(package / "intel-rapl:0:1", "uncore"): 1,
        zone(package / "intel-rapl:0:2", "dram"): 3,
        zone(tmp_path / "intel-rapl:1", "psys"): 25,
        zone(tmp_path / "intel-rapl-mmio:0", "package-0"): 10,
    }
    source = Rapl(tmp_path)
    before = source.read()
    for folder, joules in zones.items():
        (folder / "energy_uj").write_text(str(joules * 1_000_000))
    assert [channel.part for channel in source.channels] == ["cpu", "dram"]
    assert joules_of(source, before, source.read()) == {"package-0": 10.0, "package-0 dram": 3.0}


def test_dies_that_mirror_their_socket_count_once(tmp_path: Path) -> None:
    for number, (name, energy) in enumerate(
        {"package-0-die-0": 7_000_000_000, "package-0-die-1": 7_000_000_900, "package-1-die-0": 7_000_000_000}.items()
    ):
        zone(tmp_path / f"intel-rapl:{number}", name, energy)
    assert [channel.name for channel in Rapl(tmp_path).channels] == ["package-0-die-0", "package-1-die-0"]


def test_without_powercap_c5(tmp_path: Path) -> None:
    with pytest.raises(MeterError) as caught:
        Rapl(tmp_path / "missing")
    assert caught.value.reason == "absent"
    zone(tmp_path / "intel-rapl:0", "package-0", energy=None)
    with pytest.raises(MeterError) as caught:
        Rapl(tmp_path)
    assert caught.value.reason == "absent"


def test_powercap_for_root_only_c5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path / "intel-rapl:0", "package-0")
    read = Path.read_text

    def refuse(path: Path, *arguments: Any, **named: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(path)
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterError) as caught:
        Rapl(tmp_path)
    assert caught.value.reason == "no_permission"


@pytest.mark.parametrize("text", ["", "-5", "many", str(RANGE + 1)])
def test_what_no_counter_says_is_a_reading_that_failed(tmp_path: Path, text: str) -> None:
    folder = zone(tmp_path / "intel-rapl:0", "package-0")
    source = Rapl(tmp_path)
    (folder / "energy_uj").write_text(text)
    [reading] = source.read()
    assert (reading.raw, reading.reason) == (None, "read_error")


def test_two_readings_lie_nearer_than_two_wraps(tmp_path: Path) -> None:
    zone(tmp_path / "intel-rapl:0", "package-0", most=65_532_610_987)
    assert Rapl(tmp_path).period == pytest.approx(65_532.610987 / (4 * HIGHEST_POWER))


# ---- NVML ------------------------------------------------------------------------------------------------------------

FOUR = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]


def test_the_board_in_use_among_four() -> None:
    fake = FakeNvml(FOUR)
    source = Nvml(fake, Board(index=0, uuid="c"))  # CUDA_VISIBLE_DEVICES makes the third one torch's first
    before = source.read()
    for number, board in enumerate(fake.boards.values()):
        board.energy = 1000 * (number + 1)
    assert source.method == "nvml_counter"
    assert joules_of(source, before, source.read()) == {"board GPU-c": 3.0}
    assert source.details == {"name": "board GPU-c", "driver": "999.1", "power_limit_W": 700.0}


@pytest.mark.parametrize(
    ("fake", "board", "reason"),
    [
        (FakeNvml(FOUR), Board(0), "unsupported"),  # a torch that does not say which
        (FakeNvml(FOUR), Board(0, uuid="MIG-1"), "unsupported"),
        (FakeNvml(FOUR), Board(0, uuid="e"), "absent"),
    ],
)
def test_a_board_that_is_not_found(fake: FakeNvml, board: Board, reason: str) -> None:
    with pytest.raises(MeterError) as caught:
        Nvml(fake, board)
    assert caught.value.reason == reason


def test_a_divided_board_has_no_meter() -> None:
    fake = FakeNvml(["GPU-a"])
    fake.boards["GPU-a"].mig = 1
    with pytest.raises(MeterError, match="MIG"):
        Nvml(fake, Board(0))


@pytest.mark.parametrize("instant", [True, False])
def test_power_is_sampled_without_a_counter(instant: bool) -> None:
    fake = FakeNvml(["GPU-a"], counter=False, instant=instant)
    fake.boards["GPU-a"].power = 75_000
    source = Nvml(fake, Board(0))
    assert (source.method, source.flags) == ("nvml_sampling", ("sampled",))
    assert source.period is not None and source.period <= 0.1
    assert source.read()[0].raw == 75_000
    fake.boards["GPU-a"].power = 0
    assert source.read()[0].reason == "read_error"  # a board that runs takes power


@pytest.mark.parametrize(
    ("error", "reason"), [("NVMLError_NotSupported", "unsupported"), ("NVMLError_NoPermission", "no_permission")]
)
def test_errors_of_nvml_c5(error: str, reason: str) -> None:
    fake = FakeNvml(["GPU-a"], instant=False)
    source = Nvml(fake, Board(0))
    fake.fails = getattr(fake, error)()
    [reading] = source.read()
    assert (reading.raw, reading.reason) == (None, reason)
    with pytest.raises(MeterError) as caught:
        Nvml(fake, Board(0))
    assert caught.value.reason == reason


def test_without_pynvml_or_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(nvml, "import_module", missing)
    with pytest.raises(MeterError, match=r"recbole-prune\[energy\]"):
        nvml.load()
    fake = FakeNvml([])

    def no_driver() -> None:
        raise fake.NVMLError_DriverNotLoaded

    monkeypatch.setattr(fake, "nvmlInit", no_driver)
    monkeypatch.setattr(nvml, "import_module", lambda name: fake)
    with pytest.raises(MeterError) as caught:
        nvml.load()
    assert caught.value.reason == "absent"


@pytest.mark.parametrize(("pids", "shared"), [([], False), ([1], False), ([1, 2], True), (["own"], False)])
def test_other_processes_on_the_board(pids: list[Any], shared: bool) -> None:
    fake = FakeNvml(["GPU-a"])
    fake.boards["GPU-a"].pids = [os.getpid() if pid == "own" else pid for pid in pids]
    assert (Nvml(fake, Board(0)).others() is not None) is shared


# ---- zeusd -----------------------------------------------------------------------------------------------------------


class Daemon:
    """What a zeusd answers."""

    def __init__(self) -> None:
        self.energy: dict[str, Any] = {
            "0": {"cpu_energy_uj": 5_000_000_000, "dram_energy_uj": None},
            "1": {"cpu_energy_uj": 7_000_000_000, "dram_energy_uj": 1_000_000},
        }
        self.groups, self.status, self.asked = ["cpu-read", "gpu-read"], 200, ""

    def __call__(self, path: str, headers: dict[str, str]) -> tuple[int, Any]:
        if path == "/discover":
            gpus = [{"id": n, "pci_address": f"0000:{n:02x}:00.0", "name": f"board {n}"} for n in range(4)]
            cpus = [{"id": 0, "dram_available": False}, {"id": 1, "dram_available": True}]
            return 200, {"cpus": cpus, "gpus": gpus, "enabled_api_groups": self.groups}
        self.asked, self.headers = path, headers
        if path.startswith("/gpu"):
            return self.status, {"2": {"energy_mj": 1500}}
        return self.status, self.energy


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "z.sock"


def test_a_daemon_that_was_started_again_d5_and_no_dram_d6(tmp_path: Path, place: Path) -> None:
    daemon = Daemon()
    for number in (0, 1):
        zone(tmp_path / "powercap" / f"intel-rapl:{number}", f"package-{number}", energy=None)
    with zeusd_server(place, daemon):
        source = zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place)}), tmp_path / "powercap")
        assert [(channel.part, channel.name) for channel in source.channels] == [
            ("cpu", "cpu 0"),
            ("cpu", "cpu 1"),
            ("dram", "dram 1"),
        ]
        before = source.read()
        daemon.energy["0"]["cpu_energy_uj"] = 4_000_000_000
        daemon.energy["1"].update(cpu_energy_uj=7_002_000_000, dram_energy_uj=1_500_000)
        after = source.read()
    found = [channel.energy([a, b]) for channel, a, b in zip(source.channels, before, after)]
    assert [energy.reason for energy in found] == ["counter_reset", None, None]
    assert [energy.joules for energy in found] == [None, 2.0, 0.5]
    assert "cpu=true&dram=true" in daemon.asked


def test_psys_is_no_package_d7(tmp_path: Path, place: Path) -> None:
    zone(tmp_path / "powercap" / "intel-rapl:0", "package-0", energy=None)
    zone(tmp_path / "powercap" / "intel-rapl:1", "psys", energy=None)
    with zeusd_server(place, Daemon()):
        source = zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place)}), tmp_path / "powercap")
    assert [channel.name for channel in source.channels] == ["cpu 0"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "unsupported"), (401, "no_permission"), (403, "no_permission"), (404, "unsupported"), (500, "read_error")],
)
def test_what_a_daemon_refuses_d8(tmp_path: Path, place: Path, status: int, reason: str) -> None:
    daemon = Daemon()
    daemon.status = status
    zone(tmp_path / "powercap" / "intel-rapl:0", "package-0", energy=None)
    with zeusd_server(place, daemon), pytest.raises(MeterError) as caught:
        zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place)}), tmp_path / "powercap")
    assert caught.value.reason == reason


def test_the_token_is_sent(tmp_path: Path, place: Path) -> None:
    daemon = Daemon()
    with zeusd_server(place, daemon):
        board = zeusd.gpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place), "ZEUSD_TOKEN": "T"}), "00000000:02:00.0")
        assert daemon.headers["Authorization"] == "Bearer T"
        assert board.read()[0].raw == 1500 and board.details["name"] == "board 2"
        with pytest.raises(MeterError, match="no energy counter for the device"):
            zeusd.gpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place)}), None)


def test_a_path_that_no_socket_has_d9() -> None:
    with pytest.raises(MeterError) as caught:
        zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": "/" + "x" * 119}))
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("address", ["http://meter", "meter:port"])
def test_what_is_no_address_costs_numbers_only(address: str) -> None:
    with pytest.raises(MeterError, match="is no address") as caught:
        zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_HOST_PORT": address}))
    assert caught.value.reason == "read_error"


def test_no_daemon_and_a_group_that_is_off(tmp_path: Path, place: Path) -> None:
    with pytest.raises(MeterError) as caught:
        zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place)}))
    assert caught.value.reason == "absent"
    with pytest.raises(MeterError) as caught:
        zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_HOST_PORT": "127.0.0.1:9"}))
    assert caught.value.reason == "absent"
    daemon = Daemon()
    daemon.groups = []
    with zeusd_server(place, daemon), pytest.raises(MeterError) as caught:
        zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place)}))
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("answer", [[1], {"0": {"cpu_energy_uj": "many"}}, {"0": 5}, {}])
def test_what_a_daemon_should_not_answer_is_a_failed_reading(tmp_path: Path, place: Path, answer: Any) -> None:
    daemon = Daemon()
    zone(tmp_path / "powercap" / "intel-rapl:0", "package-0", energy=None)
    with zeusd_server(place, daemon):
        source = zeusd.cpu_source(zeusd.Zeusd({"ZEUSD_SOCK_PATH": str(place)}), tmp_path / "powercap")
        daemon.energy = answer
        assert [reading.reason for reading in source.read()] == ["read_error"]
    assert [reading.reason for reading in source.read()] == ["absent"]  # gone while it was needed


def test_every_reason_is_known() -> None:
    assert len(set(REASONS)) == 10
