"""``python run_recbole_prune.py --model=BPR --dataset=ml-100k --pruner=imp``: ``recbole-prune`` in RecBole's habit."""

from __future__ import annotations

import sys

from recbole_prune.cli import main

if __name__ == "__main__":
    sys.exit(main())
