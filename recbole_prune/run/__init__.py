"""One run over one configuration: its folder, data and models, the training of each ticket, choice and export.

Only ``store.py`` writes to the run folder. Nothing here decides which entries go, and nothing prints.
"""

from recbole_prune import compat

compat.apply()
