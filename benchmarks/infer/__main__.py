"""``python -m benchmarks.infer``."""

import sys

from benchmarks.yardstick import told


def _main() -> int:
    from benchmarks.infer.command import main

    return main()


if __name__ == "__main__":
    sys.exit(told(_main))
