"""Tables that hold live entries only, graph products, and kernels that rank and score over them.

What serving needs imports numpy alone (numba where it is installed); no module here knows a model, a mask's origin or
a setting.
"""
