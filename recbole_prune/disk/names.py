"""The names of what lies in a run folder (DESIGN section 5)."""

from __future__ import annotations

CONFIG = "config.yaml"
JOURNAL = "tickets.jsonl"
SCOPE = "scope.json"
SUMMARY = "summary.json"
REWIND = "rewind.safetensors"
USERS = "users.safetensors"
RESUME = "resume"
ARTIFACT = "artifact"
SERIES = "tensorboard"
DISTILLATION = "distillation"
STATES = "states"
CHECKPOINTS = "checkpoints"
MASKS = "masks"
LOG = "log.txt"

# fields that hold the sha256 of config.yaml, in scope.json, and of scope.json, in every line and in the summary
SEAL_OF_CONFIG = "config_sha256"
SEAL_OF_RUN = "run_sha256"

SET_ASIDE = ".old-"  # in the name of a folder that --fresh=True moved aside


def method_name(pruner: str, distiller: str | None) -> str:
    """``pruner`` or ``pruner+distiller``: how folders and tables name a method."""
    return pruner if distiller in (None, "none") else f"{pruner}+{distiller}"
