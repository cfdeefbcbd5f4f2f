"""Where teachers come from and what they say: checkpoints, runs, artifacts and ranked lists, in the student's ids.

``sources.py`` finds and opens them; ``base.py`` is what a method asks them, ``model.py``, ``list_file.py`` and
``ensemble.py`` are the kinds of them. No method is known here.
"""

from recbole_prune import compat

compat.apply()
