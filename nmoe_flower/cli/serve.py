"""``nmoe serve``: answer for this device's expert until told to stop."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nmoe_flower.addresses import Address
from nmoe_flower.arguments import ListenAddress, Number, Whole
from nmoe_flower.cli.options import (
    add_keys,
    add_metrics_port,
    check_keys,
    check_places,
    needs_serve,
    serve_metrics,
    take_node,
)

if TYPE_CHECKING:
    import asyncio

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "answer peers with this device's expert"

_LISTEN = "127.0.0.1:7600"
_LOOK_SECONDS = 1.0
_EXAMPLES = """\
examples:
  nmoe serve bundles/3 --insecure                        a first try, on this machine only
  nmoe serve --node node-3                               all files from a folder of nmoe deploy
  nmoe serve bundle --certificate camera-3.pem --key camera-3.key --authority ca.pem \\
             --listen 0.0.0.0:7600 --metrics-port 9600   for the federation

SIGTERM and Ctrl-C finish what is open and stop; SIGHUP reads all files again. A new bundle,
certificate or list of peers is also taken up when its file changes. The exit code is 0 if every
open request was answered.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe serve``."""
    parser.description = "Serve this device's expert to its peers over gRPC."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="its folder (of --node: its own)"
    )
    add_keys(parser)
    parser.add_argument(
        "--listen", type=ListenAddress(), metavar="HOST:PORT",
        help=f"port 0: any that is free ({_LISTEN}; with --node: where its peers look for it)",
    )  # fmt: skip
    add_metrics_port(parser)
    parser.add_argument("--peers", type=Path, metavar="FILE", help="signed list to hand on")
    parser.add_argument("--deny", nargs="+", default=[], metavar="NAME", help="who gets no answer")
    for name, kind, default, text in (
        ("--max-batch", Whole(1, 1 << 20), 256, "rows per pass"),
        ("--max-queue", Whole(1, 1 << 24), 4096, "rows that wait"),
        ("--max-wait-ms", Number(0, 60_000), 0.0, "for company"),
        ("--max-texts", Whole(1, 10_000), 32, "texts that are written at once"),
        ("--max-text-mib", Number(0, 1 << 30, open=True), 1024.0, "of their keys and values"),
        ("--threads", Whole(1, 1024), 1, "of one pass"),
        ("--drain-seconds", Number(0, 86_400), 10.0, "to finish what is open"),
    ):
        parser.add_argument(
            name, type=kind, default=default, metavar="N", help=f"{text} (%(default)s)"
        )
    parser.add_argument(
        "--weights", type=Path, metavar="PATH",
        help="of text: the backbone's, if they are not where the run had them",
    )  # fmt: skip
    parser.add_argument(
        "--log",
        choices=("json", "text"),
        default="json",
        help="form of the log on stderr (%(default)s)",
    )

    def command(args: argparse.Namespace) -> int:
        check_keys(parser, args)
        if (args.bundle is None) == (args.node is None):
            parser.error("give BUNDLE, or --node FOLDER alone, which has one")
        with needs_serve("nmoe serve"):
            take_node(args)
            check_places(args)
            import nmoe_flower.inference.serve  # noqa: F401
        args.listen = args.listen or _LISTEN
        return _run(args)

    parser.set_defaults(command=command)


def _run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 if every open request was answered."""
    import asyncio

    import torch

    torch.set_num_threads(args.threads)
    with _logging(args.log):
        return asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    from nmoe_flower.inference import ExpertServer, Sources, SourceWatch, TextExperts

    keys = None if args.insecure else (args.certificate, args.key, args.authority)
    sources = Sources(args.bundle, keys, args.peers)
    identity = sources.load_identity()
    bundle = sources.load_bundle()
    peers = sources.load_peers(identity, bundle)
    server = ExpertServer(
        bundle,
        identity,
        address=args.listen,
        max_batch=args.max_batch,
        max_wait_ms=args.max_wait_ms,
        max_queue=args.max_queue,
        max_texts=args.max_texts,
        max_text_mib=args.max_text_mib,
        peer_list=peers.to_message() if peers else None,
        deny=args.deny,
        load_text=partial(TextExperts.open, weights=str(args.weights or "")),
    )
    stop, again = _heed_signals()
    with serve_metrics(server.metrics.registry, args.metrics_port):
        port = await server.start()
        watch = SourceWatch(server, sources)
        place = replace(Address.parse(args.listen, any_port=True), port=port)
        print(json.dumps({"serving": str(place), "pid": os.getpid()}), flush=True)
        while not await _set_within(stop, _LOOK_SECONDS):
            await watch.look(again=again.is_set())
            again.clear()
        return 0 if await server.drain(args.drain_seconds) else 1


def _heed_signals() -> "tuple[asyncio.Event, asyncio.Event]":
    """Events for "stop" (SIGTERM, SIGINT) and "read the files again" (SIGHUP)."""
    import asyncio

    loop, stop, again = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number, event in (
        (signal.SIGTERM, stop),
        (signal.SIGINT, stop),
        (signal.SIGHUP, again),
    ):
        loop.add_signal_handler(number, event.set)
    return stop, again


async def _set_within(event: "asyncio.Event", seconds: float) -> bool:
    import asyncio

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


@contextlib.contextmanager
def _logging(form: str) -> Iterator[None]:
    """Events of the peer to standard error."""
    from nmoe_flower.inference import JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logger = logging.getLogger("nmoe_flower")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
