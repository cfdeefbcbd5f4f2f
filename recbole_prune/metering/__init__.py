"""What a model costs to run, counted rather than timed."""

from __future__ import annotations

from recbole_prune.metering.macs import Macs, MacsReport, TrainingMacs, measure_macs

__all__ = ["Macs", "MacsReport", "TrainingMacs", "measure_macs"]
