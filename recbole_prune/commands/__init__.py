"""The subcommands of ``recbole-prune``: parse words, call, print.

The only room that reads ``sys.argv`` and prints; what it prints comes from ``report/``. Each module has
``main(words) -> exit status``.
"""
