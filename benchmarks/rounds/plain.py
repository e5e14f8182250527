"""The measured side without Flower: the bare loop, pfl, and the line on which a runner is asked.

Each runner is a process of its own that connects to the bench and answers requests, one JSON object
a line. So runners take turns, round by round, and whatever else the machine does hits them alike.
What is imported here is part of the memory of all runners: no Flower.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from benchmarks.rounds.kinds import kind_of
from nmoe_flower.addresses import free_ports
from nmoe_flower.arguments import SEED, Parser, Whole

__all__ = ["answer", "main", "runner_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve ``bare`` or ``pfl``."""
    parser = runner_parser("bare", "pfl")
    parser.add_argument("--follow", action="store_true", help="a further process of pfl")
    args = parser.parse_args(argv)
    kind = kind_of(args.kind)
    if args.follow:
        from benchmarks.rounds.competitor import PflLoop

        PflLoop(kind, args.seed).follow()
    elif args.runner == "pfl":
        with _met(args.workers, sys.argv[1:] if argv is None else argv):
            from benchmarks.rounds.competitor import PflLoop

            with closing(PflLoop(kind, args.seed)) as competitor:
                answer(args.address, {"rounds": competitor.rounds})
    else:
        from benchmarks.rounds.bare import BareLoop

        with closing(BareLoop(kind, args.seed, args.workers)) as loop:
            answer(args.address, {"rounds": loop.rounds})
    return 0


@contextmanager
def _met(workers: int, argv: Sequence[str]) -> Iterator[None]:
    """Start the other processes of pfl as ``torchrun`` would, without a process of its own."""
    (port,) = free_ports(1)
    size = str(workers)
    meeting = {
        "TORCHELASTIC_RUN_ID": "benchmark",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
    }
    command = [sys.executable, "-m", "benchmarks.rounds.plain", *argv, "--follow"]
    others = []
    for rank in range(workers) if workers > 1 else ():
        environment = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if rank:
            others.append(subprocess.Popen(command, env=os.environ | environment))
        else:
            os.environ.update(environment)
    try:
        yield
    finally:
        for other in others:
            other.wait()


def runner_parser(*runners: str) -> argparse.ArgumentParser:
    """The arguments of a runner's process."""
    parser = Parser()
    parser.add_argument("runner", choices=runners)
    parser.add_argument("kind")
    parser.add_argument("--seed", type=SEED, required=True)
    parser.add_argument("--workers", type=Whole(0, 4096), required=True)
    parser.add_argument("--address", required=True)
    return parser


def answer(address: str, handlers: Mapping[str, Callable[[int], list[float]]]) -> None:
    """Serve the bench at ``host:port:token`` until it hangs up."""
    host, port, token = address.split(":")
    with socket.create_connection((host, int(port))) as line, line.makefile("rw") as stream:
        stream.write(json.dumps(token) + "\n")
        stream.flush()
        for request in stream:
            name, count = json.loads(request)
            stream.write(json.dumps(handlers[name](count)) + "\n")
            stream.flush()


if __name__ == "__main__":
    sys.exit(main())
