"""Several processes that train one run: how they are started, who they are, and what they tell each other.

All of them do the same: they draw the same random numbers, see the same batches, decide the same masks. Each computes
the gradients of its own rows of a batch, which are then added up, bit for bit alike. What touches the run folder, the
first process does for all; the others are told what came of it.
"""
