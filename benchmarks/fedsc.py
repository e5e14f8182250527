"""A round of FedSC beside spectral contrastive learning written by hand.

Everything runs in this process and on one thread: the same network, views, steps and server
optimizer. The variants differ in what they do about correlation matrices.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.by_flower import device_at, rounds_of
from benchmarks.yardstick import machine_line, ratio, told, write_rows
from nmoe_flower.arguments import SEED, OutputFile, Parser, Whole
from nmoe_flower.client_app import app
from nmoe_flower.clients.device import Device
from nmoe_flower.config import Config
from nmoe_flower.data import normalise
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.privacy import MAX_DIM, packed_size
from nmoe_flower.provenance import provenance
from nmoe_flower.records import Action
from nmoe_flower.strategies import AdamW, FedSC
from nmoe_flower.training import autocast, batch_indices, generator

__all__ = ["main"]

GOAL = 1.15
GOAL_CORRELATION = 1.10
BLOCK = 3
LOCAL_RATE = 0.1
SERVER_RATE = 1e-3

VARIANTS = {
    "merged": "matrices ride with the weights",
    "two-phase": "matrices are asked for first",
    "alone": "no matrices: every client for itself",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured, whatever the figures are."""
    args = _parser().parse_args(argv)
    source = provenance(args.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = _measure(_config(args, folder), args.clients, args.rounds)
    finally:
        torch.set_num_threads(threads)
    merged, alone = found["merged"], found["alone"]
    correlation = ratio(merged["blocks"], alone["blocks"])
    packed = 4 * packed_size(args.dim)
    print(f"{'':10} {'per client round':>17} {'x bare':>8}")
    for name, figures in found.items():
        print(f"{name:10} {figures['seconds'] / args.clients * 1e3:>14.1f} ms {figures['x']:>8.3f}")
    print(f"merged against bare: {merged['x']:.3f} {_against(merged['x'], GOAL)}")
    print(f"matrices (merged / alone): {correlation:.3f} {_against(correlation, GOAL_CORRELATION)}")
    print(f"a matrix travels in {packed} bytes, {packed / (4 * args.dim**2):.3f} of the full one")
    print(machine_line(source, 0))
    if args.json is not None:
        about = {"clients": args.clients, "batch": args.batch, "dim": args.dim}
        write_rows(
            args.json,
            {"provenance": source, **about, "variants": found, "correlation-ratio": correlation},
        )
    return 0


def _measure(config: Config, clients: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Every variant takes turns with the bare loop: a drift of the machine favours neither."""
    bare = _Bare(config, clients)
    runners: dict[str, Callable[[int], object]] = {
        name: _flower(config, clients, name) for name in VARIANTS
    }
    for run in (bare.round, *runners.values()):
        run(1)
    found: dict[str, dict[str, Any]] = {}
    for name in VARIANTS:
        found[name] = {"blocks": [], "bare": []}
    for number in range(max(1, rounds // BLOCK)):
        for name, run in runners.items():
            pair = [("bare", bare.round), ("blocks", run)]
            for kind, one in pair if number % 2 else reversed(pair):
                found[name][kind].append(
                    [_seconds(one, 2 + number * BLOCK + k) for k in range(BLOCK)]
                )
    for figures in found.values():
        figures["x"] = ratio(figures["blocks"], figures["bare"])
        figures["seconds"] = statistics.median(s for block in figures["blocks"] for s in block)
    return found


def _seconds(run: Callable[[int], object], server_round: int) -> float:
    started = time.perf_counter()
    run(server_round)
    return time.perf_counter() - started


class _Bare:
    """FedSC by hand: no Flower, no messages, no checks; matrices of the round before."""

    def __init__(self, config: Config, clients: int) -> None:
        self._devices = [device_at(config, clients, i) for i in range(clients)]
        self._network = self._devices[0].fresh_contrastive()
        self._weights = {k: v.clone() for k, v in self._network.state_dict().items()}
        self._matrices: list[torch.Tensor] = []
        self._optimizer = AdamW()

    def round(self, server_round: int) -> None:
        """All clients, then the server's step."""
        mean = sum(self._matrices) / len(self._matrices) if self._matrices else None
        total: dict[str, torch.Tensor] = {}
        matrices = []
        for i, device in enumerate(self._devices):
            self._network.load_state_dict(self._weights)
            matrices.append(self._client(device, i, mean, server_round))
            for name, value in self._network.state_dict().items():
                total[name] = total[name] + value if name in total else value.clone()
        for name, value in total.items():
            averaged = value / len(self._devices)
            if value.is_floating_point() and "running" not in name:
                sent = self._weights[name].numpy()
                gradient = (sent - averaged.numpy()) / np.float32(LOCAL_RATE)
                stepped = self._optimizer.step(name, sent, gradient, SERVER_RATE)
                self._weights[name] = torch.from_numpy(stepped)
            else:
                self._weights[name] = averaged.to(value.dtype)
        self._matrices = matrices

    def _client(
        self, device: Device, i: int, mean: "torch.Tensor | float | None", server_round: int
    ) -> torch.Tensor:
        network, config = self._network, device.config
        share, weight = 1 / len(self._devices), config.contrast.weight
        (chosen,) = batch_indices(
            len(device.train_images), config.extractor.batch_size,
            first=server_round - 1, count=1, seed=device.seed("batches"),
        )  # fmt: skip
        noise = generator(device.seed("views", server_round - 1))
        network.train()
        views = torch.cat(device.views(normalise(device.train_images[chosen]), noise))
        with autocast(device.bf16, device.torch_device):
            z = network(views)
        z = z.float()
        z = z / z.norm(dim=1, keepdim=True).clamp(min=1)
        z1, z2 = z.chunk(2)
        batch, matrix = len(z1), z.T @ z / len(z)
        own = z.square().sum(1).square().sum() + 2 * (z1 * z2).sum(1).square().sum()
        negative = (4 * batch**2 * matrix.square().sum() - own) / (8 * batch * (batch - 1))
        if isinstance(mean, torch.Tensor):
            others = (mean - share * self._matrices[i]) / (1 - share)
            negative = share * negative + (1 - share) * (matrix * others).sum()
        loss = weight * negative - (z1 * z2).sum(1).mean()
        parameters = list(network.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.data.sub_(gradient, alpha=LOCAL_RATE)
        kept: torch.Tensor = matrix.detach()
        return kept


def _flower(config: Config, clients: int, variant: str) -> Callable[[int], dict[str, np.ndarray]]:
    """A round of the strategy and the real client handlers; gives the weights."""
    contrast = {"contrast.share": "own" if variant == "alone" else "samples"}
    run_config = {**config.flat(), **contrast, "run.name": variant}
    grid = InProcessGrid(app, clients, run_config=run_config)
    strategy = FedSC(
        exchange="two-phase" if variant == "two-phase" else "merged",
        refresh=10**9 if variant == "alone" else 1,
        action=Action.FEDSC,
        server_optimizer=AdamW(),
        learning_rate=lambda _: SERVER_RATE,
        local_learning_rate=LOCAL_RATE,
    )
    return rounds_of(strategy, grid, Action.INITIAL)


def _config(args: argparse.Namespace, folder: str) -> Config:
    return Config.parse(
        {
            "data.dataset": args.dataset,
            "data.num-clients": args.clients,
            "extractor.method": "fedsc",
            "extractor.backbone": "narrow",
            "extractor.pool": "multi",
            "extractor.stem": "cifar",
            "extractor.batch-size": args.batch,
            "extractor.server-optimizer": "adamw",
            "contrast.view-size": 24,
            "contrast.dim": args.dim,
            "contrast.weight": 12,
            "run.seed": args.seed,
            "run.out": folder,
        }
    )


def _against(value: float, goal: float) -> str:
    return f"(goal <= {goal:g}: {'met' if value <= goal else 'missed'})"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.fedsc",
        description="Seconds of a FedSC round, as multiples of a bare PyTorch loop.",
    )
    parser.add_argument("--dataset", default="digits", help="digits, a hub name, or a folder")
    parser.add_argument("--clients", type=Whole(1, 10_000), default=10)
    parser.add_argument("--batch", type=Whole(1, 1 << 20), default=50, help="images per round")
    parser.add_argument("--dim", type=Whole(1, MAX_DIM), default=128, help="width of the features")
    parser.add_argument("--rounds", type=Whole(1), default=12, help="measured rounds of each")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    return parser


if __name__ == "__main__":
    sys.exit(told(main))
