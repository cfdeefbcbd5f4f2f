"""Many runs as one comparison: which cells there are, in which order, and who runs them: this machine or a cluster.

Each cell is the ordinary command in a process of its own, and its run folder is all that is kept of it. Nothing here
trains or prints; the table is made by ``report/``.
"""
