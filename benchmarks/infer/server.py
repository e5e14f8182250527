"""The server's side: a peer or a yardstick, in a process of its own.

``python -m benchmarks.infer.server KIND BUNDLE [CERTIFICATES]`` prints its port
and serves until its standard input ends.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import torch
from torch import nn

from nmoe_flower.arguments import Parser
from nmoe_flower.certificates import Identity
from nmoe_flower.inference import Bundle, ExpertServer
from nmoe_flower.inference.protocol import MAX_MESSAGE_BYTES, SERVICE, peer_pb2
from nmoe_flower.inference.serve import load_expert

__all__ = ["main"]

Handler = Callable[[bytes, Any], Awaitable[bytes]]


def main() -> None:
    """Serve until standard input ends."""
    parser = Parser()
    parser.add_argument("what", choices=("peer", "service", "bare", "echo"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("certificates", type=Path, nargs="?")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> None:
    folder = args.certificates
    identity = (
        Identity.load(folder / "server.pem", folder / "server.key", folder / "ca.pem")
        if folder
        else None
    )
    bundle = Bundle.load(args.bundle)
    if args.what in ("peer", "service"):
        peer = ExpertServer(bundle, identity, load=load_expert if args.what == "peer" else _layer)
        await _until_told(await peer.start())
        await peer.drain(1.0)
    else:
        server, port = await _plain(echo if args.what == "echo" else bare(bundle), identity)
        await _until_told(port)
        await server.stop(0)


def _layer(bundle: Bundle) -> nn.Module:
    """A network that costs next to nothing: what is left is the service itself."""
    return nn.Linear(bundle.latent_dim, len(bundle.classes))


async def _until_told(port: int) -> None:
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def echo(data: bytes, context: Any) -> bytes:
    """The least a server can do: send back the bytes that came."""
    return data


def bare(bundle: Bundle) -> Handler:
    """The least a server of this expert can do: no checks, names, counters, queue or thread."""
    expert = load_expert(bundle)

    async def answer(data: bytes, context: Any) -> bytes:
        request = peer_pb2.PredictRequest.FromString(data)
        rows = request.latents.rows
        latents = np.frombuffer(bytearray(request.latents.data), np.float32).reshape(rows, -1)
        with torch.inference_mode():
            logits = expert(torch.from_numpy(latents)).numpy()
        columns, packed = logits.shape[1], logits.tobytes()
        tensor = peer_pb2.Tensor(
            dtype=peer_pb2.Tensor.FLOAT32, rows=rows, columns=columns, data=packed
        )
        return bytes(peer_pb2.PredictReply(logits=tensor).SerializeToString())

    return answer


async def _plain(handler: Handler, identity: Identity | None) -> tuple[Any, int]:
    """A server of gRPC without settings, but for the size of a message."""
    handlers = {"Predict": grpc.unary_unary_rpc_method_handler(handler)}
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if identity is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", identity.server_credentials())
    await server.start()
    return server, port


if __name__ == "__main__":
    main()
