"""RecBole's Config with the settings of this package, checked, frozen and hashed.

The only room that reads raw configuration; the property files are the source of truth, the words of a command line
are handed in. Apart from ``prune_config.py`` it imports neither RecBole nor torch.
"""
