"""What a model costs: multiply-accumulates and bytes, counted, and joules of windows, as meters tell them.

Nothing here trains or decides; a figure that cannot be had is left out with its reason, never 0.
"""
