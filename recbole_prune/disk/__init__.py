"""What a run folder is on disk, for those who write and those who only read: names, locks, sealed JSON, whole files.

Loads neither torch nor RecBole; what stands in the files is for ``run/`` and ``report/`` to know.
"""
