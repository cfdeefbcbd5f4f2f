"""Scores: how much an entry matters. Which entries go is decided in :mod:`recbole_prune.masking.allocate`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from recbole_prune.masking.scope import Scope


def magnitude(weights: Mapping[str, torch.Tensor], scope: Scope) -> dict[str, torch.Tensor]:
    """Absolute values (Han et al. 2015; the criterion of Frankle and Carbin 2019).

    Args:
        weights: tensors by name, at least those of the scope.
        scope: targets to score.

    Returns:
        float scores on the CPU, each of its target's shape.
    """
    return {target.name: weights[target.name].detach().cpu().float().abs() for target in scope}


def uniform(scope: Scope, seed: int) -> dict[str, torch.Tensor]:
    """Independent uniform random scores: the random-mask control.

    The draw depends on the seed and the scope only, so that the masks of increasing sparsity are nested.
    """
    generator = torch.Generator().manual_seed(seed)
    return {target.name: torch.rand(target.shape, generator=generator, dtype=torch.float64) for target in scope}
