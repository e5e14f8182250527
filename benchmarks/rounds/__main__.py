"""``python -m benchmarks.rounds``."""

import sys

from benchmarks.yardstick import told


def _main() -> int:
    from benchmarks.rounds.command import main

    return main()


if __name__ == "__main__":
    sys.exit(told(_main))
