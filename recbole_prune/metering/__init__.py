"""What a model costs: multiply-accumulates, counted, and windows around the work that meters measure.

Nothing here trains or decides; a figure that cannot be had is left out with its reason, never 0.
"""
