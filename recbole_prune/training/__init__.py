"""Subclasses, made on the fly, of RecBole's models and trainers, the parts that train along, and resume points.

No mask is decided here and no file is written: what must be kept is handed to the caller's files. No epoch loop of
RecBole is copied.
"""

from recbole_prune import compat

compat.apply()
