"""Recommends from an artifact on a machine without torch, RecBole and pandas."""

from recbole_prune.serving.recommend import Recommender

__all__ = ["Recommender"]
