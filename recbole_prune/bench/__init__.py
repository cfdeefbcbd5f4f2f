"""Plain RecBole and this package in turn, on the same data, settings and seed: one module per benchmark.

Results are samples with medians and ratios; nothing here is needed to train, prune or serve.
"""
