"""`python -m MODULE --help`, for scripts whose arguments are a few positions: the module's docstring is the help."""

from __future__ import annotations

import sys


def explain(docstring: str | None, minimum: int = 0) -> None:
    """Prints the docstring and exits: 0 where `--help` is given, 2 where fewer than `minimum` arguments are."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(docstring)
        sys.exit(0)
    if len(arguments) < minimum:
        print(docstring, file=sys.stderr)
        sys.exit(2)
