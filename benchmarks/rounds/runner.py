"""The measured side: a process that runs rounds of Flower when it is told to, and times them."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.rounds.kinds import Kind, kind_of
from benchmarks.rounds.plain import answer, runner_parser
from nmoe_flower.engine import InProcessGrid, StreamingGrid
from nmoe_flower.records import ARRAYS
from nmoe_flower.strategies import FedCE

__all__ = ["OURS", "main", "ours", "rounds_of", "stock"]

OURS = "benchmarks.rounds.client:ours"
Rounds = Callable[[int], list[float]]

ours = ServerApp()
stock = ServerApp()


@ours.main()
def serve_ours(grid: Grid, context: Context) -> None:
    """FedCE with this package's client."""
    _quiet()
    kind = kind_of(str(context.run_config["kind"]))
    strategy = _strategy(FedCE, kind)
    handlers = {"echo": lambda n: _echo(grid, kind, n)}
    _answer(context, handlers | {"rounds": rounds_of(strategy, grid, _initial(strategy, grid))})


@stock.main()
def serve_stock(grid: Grid, context: Context) -> None:
    """FedAvg with the client of Flower's quick start."""
    from benchmarks.rounds.model import build_model

    _quiet()
    kind = kind_of(str(context.run_config["kind"]))
    arrays = ArrayRecord(build_model(kind, int(str(context.run_config["seed"]))).state_dict())
    _answer(context, {"rounds": rounds_of(_strategy(FedAvg, kind), grid, arrays)})


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a runner that needs no SuperLink: inprocess, or the memory of a strategy."""
    args = runner_parser("inprocess", "channels-last", "streaming", "fedavg").parse_args(argv)
    _quiet()
    kind = kind_of(args.kind)
    config: dict[str, bool | int | float | str] = {
        "kind": kind.name, "seed": args.seed, "channels-last": args.runner == "channels-last",
    }  # fmt: skip
    with InProcessGrid(OURS, kind.clients, run_config=config, workers=args.workers) as grid:
        strategy = _strategy(FedAvg if args.runner == "fedavg" else FedCE, kind)
        run = rounds_of(strategy, grid, _initial(strategy, grid))
        handlers = {"rounds": run, "echo": lambda n: _echo(grid, kind, n), "peak": _peak}
        answer(args.address, handlers)
    return 0


def rounds_of(strategy: FedAvg, grid: Grid, initial: ArrayRecord) -> Rounds:
    """A function that runs so many more rounds and returns the seconds of each."""
    arrays = initial

    def run(count: int) -> list[float]:
        nonlocal arrays
        stamps: list[float] = []
        result = strategy.start(
            grid,
            initial_arrays=arrays,
            num_rounds=count,
            train_config=ConfigRecord(),
            evaluate_fn=lambda _round, _arrays: stamps.append(time.perf_counter()),
        )
        arrays = result.arrays
        return [after - before for before, after in pairwise(stamps)]

    return run


def _answer(context: Context, handlers: Mapping[str, Callable[[int], list[float]]]) -> None:
    answer(str(context.run_config["address"]), handlers)


def _strategy(make: Callable[..., FedAvg], kind: Kind) -> FedAvg:
    least = dict.fromkeys(("min_train_nodes", "min_available_nodes"), kind.clients)
    return make(fraction_evaluate=0.0, **least)


def _initial(strategy: FedAvg, grid: Grid) -> ArrayRecord:
    """Ask the first node for the weights, so that the server imports no torch."""
    while len(nodes := sorted(grid.get_node_ids())) < strategy.min_available_nodes:
        time.sleep(0.02)
    message = Message(RecordDict(), nodes[0], "query.initial")
    (reply,) = StreamingGrid.around(grid).send_and_receive([message], timeout=120.0)
    return reply.content.array_records[ARRAYS]


def _echo(grid: Grid, kind: Kind, count: int) -> list[float]:
    """Seconds of ``count`` exchanges of 1 kB with 10 nodes."""
    nodes = sorted(grid.get_node_ids())[:10]
    content = RecordDict({"config": ConfigRecord({"blob": bytes(1024)})})
    streaming = StreamingGrid.around(grid)
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        messages = [Message(content, node, "query.echo") for node in nodes]
        replies: Iterable[Message] = streaming.send_and_receive(messages, timeout=60.0)
        if sum(reply.has_content() for reply in replies) != len(nodes):
            raise RuntimeError("an echo did not come back")
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak(_count: int) -> list[float]:
    """Most bytes this process ever held in memory."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return [float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)]


def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
