"""Peers in processes of their own, forked from one that has already loaded torch.

Run as a script. Each line of standard input is a list of peers, as JSON: ``[{bundle, certificate,
key, authority, port}, ...]``. They are served by one new process; the line that comes back holds
its ``pid`` and its ``ports``. At the end of the input all processes end.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from nmoe_flower.certificates import Identity
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.serve.service import ExpertServer


async def serve(peers: list[dict[str, Any]]) -> None:
    servers = [
        ExpertServer(
            Bundle.load(Path(peer["bundle"])),
            Identity.load(*(Path(peer[name]) for name in ("certificate", "key", "authority"))),
            address=f"127.0.0.1:{peer['port']}",
        )
        for peer in peers
    ]
    ports = [await server.start() for server in servers]
    print(json.dumps({"pid": os.getpid(), "ports": ports}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # killed children leave nothing behind
    children = []
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(serve(json.loads(line)))
            finally:
                os._exit(1)
        children.append(child)
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
