"""Which entries of a model are pruned: the scope, boolean masks, scores and exact selections, schedules, growth.

Nothing here trains, evaluates or reads files; modules that need no torch do not import it.
"""
