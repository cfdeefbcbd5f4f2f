"""How a model ranks: full-sort evaluation with RecBole's digits, and probes that tell whether two forms agree.

Weights and masks are read here, never changed beyond a context that puts them back.
"""

from recbole_prune import compat

compat.apply()
