"""``nmoe serve``: answer for this device's expert until told to stop."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from nmoe_flower.addresses import Address
from nmoe_flower.cli.options import serve_metrics
from nmoe_flower.inference import ExpertServer, JsonFormatter, Sources, SourceWatch

__all__ = ["run"]

_LOOK_SECONDS = 1.0


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 if every open request was answered."""
    torch.set_num_threads(args.threads)
    with _logging(args.log):
        return asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    keys = None if args.insecure else (args.certificate, args.key, args.authority)
    sources = Sources(args.bundle, keys, args.peers)
    identity = sources.load_identity()
    peers = sources.load_peers(identity)
    server = ExpertServer(
        sources.load_bundle(),
        identity,
        address=args.listen,
        max_batch=args.max_batch,
        max_wait_ms=args.max_wait_ms,
        max_queue=args.max_queue,
        peer_list=peers.to_message() if peers else None,
        deny=args.deny,
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


def _heed_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events for "stop" (SIGTERM, SIGINT) and "read the files again" (SIGHUP)."""
    loop, stop, again = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number, event in (
        (signal.SIGTERM, stop),
        (signal.SIGINT, stop),
        (signal.SIGHUP, again),
    ):
        loop.add_signal_handler(number, event.set)
    return stop, again


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


@contextlib.contextmanager
def _logging(form: str) -> Iterator[None]:
    """Events of the peer to standard error."""
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
