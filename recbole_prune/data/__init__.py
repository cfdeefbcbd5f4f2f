"""RecBole's dataloaders, faster and from the same random streams; datasets that are kept; the state of all streams.

No model is built or scored here. Batches and negatives are RecBole's bit for bit.
"""

from recbole_prune import compat

compat.apply()
