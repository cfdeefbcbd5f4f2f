"""Real meters where a machine has any (C10 to C13); everywhere else these tests are skipped, and say why."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from recbole_prune.metering.energy import EnergyMeter
from recbole_prune.metering.machine import open_meter
from recbole_prune.metering.nvml import SAMPLING_PERIOD
from recbole_prune.metering.readings import sampled
from recbole_prune.run.measuring import said_of_meters

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
REST = 10.0
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def meter() -> EnergyMeter:
    found = open_meter(DEVICE, idle_seconds=REST, list_seconds=20)
    if not found.has_meters:
        pytest.skip(said_of_meters(found.describe()))
    return found


def load(seconds: float) -> Callable[[], int]:
    """Products of matrices for about so many seconds; says how many."""
    matrix = torch.randn(1024, 1024, device=DEVICE)

    def work() -> int:
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            torch.mm(matrix, matrix).sum().item()
            count += 1
        return count

    return work


def measured(meter: EnergyMeter, work: Callable[[], Any]) -> tuple[float, float, float | None]:
    """Joules, seconds and net joules of a window, over all parts with a meter."""
    meter.begin()
    with meter.window("train"):
        work()
    record = meter.record()
    parts = [part for part, found in record["meters"].items() if found["method"] is not None]
    train = record["train"]
    assert all(train[f"{part}_reason"] is None for part in parts), {part: train[f"{part}_reason"] for part in parts}
    return (
        sum(train[f"{part}_energy_J"] for part in parts),
        train["window_s"],
        sum(train[f"{part}_energy_net_J"] for part in parts),
    )


def test_a_sleep_takes_what_the_machine_takes_at_rest_c10(meter: EnergyMeter) -> None:
    joules, _, net = measured(meter, lambda: time.sleep(30))
    assert abs(net) <= 0.05 * joules


def test_twice_the_work_takes_twice_the_net_energy_c11(meter: EnergyMeter) -> None:
    matrix = torch.randn(1024, 1024, device=DEVICE)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(matrix, matrix).sum().item()

    count = load(20)()
    once, twice = (measured(meter, lambda times=times: products(times * count))[2] for times in (1, 2))
    assert twice == pytest.approx(2 * once, rel=0.05)


def test_the_counter_agrees_with_samples_c12(meter: EnergyMeter) -> None:
    [source] = [source for source in meter.sources if source.method == "nvml_counter"] or [None]
    if source is None:
        pytest.skip("no board with a counter of energy")
    nvml, handle = source._nvml, source._handle
    from recbole_prune.metering.readings import Reading

    samples: list[Reading] = []
    first, end = source.read(), time.perf_counter() + 30
    work = load(SAMPLING_PERIOD)
    while time.perf_counter() < end:
        work()
        samples.append(Reading(time.perf_counter(), nvml.nvmlDeviceGetPowerUsage(handle)))
    [channel] = source.channels
    counted = channel.energy([*first, *source.read()]).joules
    assert sampled(samples, 1000, longest_gap=5).joules == pytest.approx(counted, rel=0.1)


def test_measuring_takes_no_time_c13(meter: EnergyMeter) -> None:
    matrix, count = torch.randn(1024, 1024, device=DEVICE), load(5)()

    def seconds(window: bool) -> float:
        start = time.perf_counter()
        if window:
            with meter.window("train"):
                for _ in range(count):
                    torch.mm(matrix, matrix).sum().item()
        else:
            for _ in range(count):
                torch.mm(matrix, matrix).sum().item()
        return time.perf_counter() - start

    pairs = [(seconds(True), seconds(False)) for _ in range(5)]
    assert min(with_it for with_it, _ in pairs) <= 1.01 * min(without for _, without in pairs)
