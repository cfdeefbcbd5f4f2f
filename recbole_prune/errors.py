"""Errors that a user can act on: each message names the key or file, the value found and what is allowed."""

from __future__ import annotations


class PruneError(Exception):
    """Base of all errors of this package; the command line prints its text and exits with status 2."""


class ConfigError(PruneError):
    """A setting is unknown, has the wrong type, is out of range or contradicts another one."""


class StoreError(PruneError):
    """The run folder cannot be used: locked, not writable, disk full, or a file in it is corrupt."""


class ArtifactError(PruneError):
    """An artifact cannot be written or read: corrupt, of a newer format, or not what the request needs."""


class NothingToPrune(PruneError):
    """The model has no tensor that may be pruned in the requested scope."""


class TrainingError(PruneError):
    """Training cannot go on, for example because the loss became NaN."""
