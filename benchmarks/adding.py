"""How much of a round it is to add up what clients send: the part that more adders could share."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.rounds.kinds import KINDS, Kind
from benchmarks.rounds.model import batches, build_model, optimizer_for, take_steps
from benchmarks.yardstick import columns, told
from nmoe_flower.arguments import Parser
from nmoe_flower.strategies import WeightedMean

__all__ = ["main"]

_TIMES = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per kind of work; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.adding", description=__doc__)
    parser.add_argument("--kind", choices=tuple(KINDS), nargs="+", default=tuple(KINDS))
    args = parser.parse_args(argv)
    return told(lambda: _measure([KINDS[name] for name in args.kind]))


def _measure(kinds: Sequence[Kind]) -> int:
    rows = [("kind", "clients", "their steps, ms", "adding up, ms", "share")]
    for kind in kinds:
        steps, adding = _milliseconds(kind)
        share = adding / (steps + adding)
        rows.append((kind.name, str(kind.clients), f"{steps:.1f}", f"{adding:.1f}", f"{share:.3f}"))
    print(columns(rows, left=(0,)))
    return 0


def _milliseconds(kind: Kind) -> tuple[float, float]:
    """CPU time of one round's steps, and of adding up what all clients made of the model."""
    model = build_model(kind, 0)
    optimizer = optimizer_for(model)
    arrays = {name: part.detach().numpy() for name, part in model.named_parameters()}

    def add_up() -> None:
        mean = WeightedMean()
        for _ in range(kind.clients):
            mean.add(arrays, kind.images)
        mean.result()

    take_steps(model, optimizer, batches(kind, 0, 0, 1))  # what the first step sets up
    steps = _timed(lambda: take_steps(model, optimizer, batches(kind, 0, 0, 2)))
    return 1e3 * kind.clients * steps, 1e3 * _timed(add_up)


def _timed(work: Callable[[], None]) -> float:
    """The median of some seconds of this process."""
    seconds = []
    for _ in range(_TIMES):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
