"""Keep what is published of finished runs, tabulate it, and put it onto the pages.

python -m experiments.publish run RUN_DIR STUDY/VARIANT    what is kept of a finished run
python -m experiments.publish pages [--check]              the tables of all pages, from results/
python -m experiments.publish figures [--check]          the figures again, from results/
python -m experiments.publish synthetic [TABLE ...]        what is computed, or drawn at random

What is kept of a study, and its table.json: nmoe study report STUDY --publish results
"""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = ("run", "pages", "figures", "synthetic")


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code, 2 if there is none of that name."""
    name, *rest = argv or ("",)
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        print(f"no command {name!r}; allowed: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return int(import_module(f"experiments.publish.{name}").main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
