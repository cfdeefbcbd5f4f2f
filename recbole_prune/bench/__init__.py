"""``recbole-prune bench``: plain RecBole and this package in turn, on the same data, settings and seed."""
