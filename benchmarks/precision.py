"""Steps of training and passes without gradients: in float32, in bfloat16, and without tiles.

What is faster is measured in turns, in an environment as workers have it. ``direct`` is
float32 with torch's own convolutions everywhere; else the wide ones are computed in tiles, see
`nmoe_flower.models.winograd`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.yardstick import columns, json_option, say, start_as_workers, told, write_figures
from nmoe_flower.arguments import NameList, Parser, Whole
from nmoe_flower.models import build_extractor, winograd
from nmoe_flower.training import autocast, seeded, use_bf16

__all__ = ["main"]

_IMAGES, _TOKENS = (50, 3, 32, 32), (1024, 576)  # of a batch; of SmolLM2-135M the width


@dataclass(frozen=True)
class Pace:
    """One network, trained or asked.

    Attributes:
        network: One of the names in `NETWORKS`.
        training: Whether it takes steps; else it only answers.
        float32: Milliseconds of a batch.
        bf16: Milliseconds of a batch under autocast.
        direct: Milliseconds of a batch in float32 without tiles.
        gain: Median quotient of neighbouring turns, float32 over bfloat16.
        tiles_gain: The same, float32 without tiles over float32.
    """

    network: str
    training: bool
    float32: float
    bf16: float
    direct: float
    gain: float
    tiles_gain: float


def _extractor(name: str) -> nn.Module:
    return build_extractor(name).to(memory_format=torch.channels_last)


def _feed_forward() -> nn.Module:
    width = _TOKENS[1]
    return nn.Sequential(nn.Linear(width, 1536), nn.SiLU(), nn.Linear(1536, width))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "narrow": (partial(_extractor, "narrow"), _IMAGES),
    "narrow-residual": (partial(_extractor, "narrow-residual"), _IMAGES),
    "resnet18": (partial(_extractor, "resnet18"), _IMAGES),
    "feed-forward": (_feed_forward, _TOKENS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    found = []
    for name in args.network:
        say(f"measuring {name}")
        found += [_measured(name, training, device, args) for training in (True, False)]
    chosen = "bf16" if use_bf16("auto", device, worthwhile=True) else "float32"
    print(f"{device}, {args.threads} threads; run.precision = auto computes in {chosen} here")
    head = ("network", "", "ms float32", "ms bf16", "x faster", "ms direct", "x in tiles")
    rows = [
        (one.network, "training" if one.training else "answers",
         *(f"{v:.2f}" for v in (one.float32, one.bf16, one.gain, one.direct, one.tiles_gain)))
        for one in found
    ]  # fmt: skip
    print(columns([head, *rows], left=(0, 1)))
    place = {"device": args.device, "threads": args.threads, "auto": chosen}
    write_figures(args.json, {"paces": [asdict(one) for one in found], **place})
    return 0


def _measured(name: str, training: bool, device: torch.device, args: argparse.Namespace) -> Pace:
    build, shape = NETWORKS[name]
    with seeded(0):
        network, batch = build().to(device).train(training), torch.randn(shape)
    if len(shape) == 4:
        batch = batch.to(memory_format=torch.channels_last)
    turn = partial(_turn, network, batch.to(device), training, args.steps)

    def direct() -> float:
        with patch.object(winograd, "pays", return_value=False):
            return turn(bf16=False)

    kinds = (partial(turn, bf16=False), partial(turn, bf16=True), direct)
    [kind() for kind in kinds]  # what is compiled or looked up once
    turns = [[kind() for kind in kinds] for _ in range(args.turns)]
    gains = [(plain / half, untiled / plain) for plain, half, untiled in turns]
    medians = (median(column) for table in (turns, gains) for column in zip(*table, strict=True))
    return Pace(name, training, *medians)


def _turn(network: nn.Module, batch: Tensor, training: bool, steps: int, *, bf16: bool) -> float:
    began = time.perf_counter()
    with torch.set_grad_enabled(training):
        for _ in range(steps):
            with autocast(bf16, batch.device):
                found = network(batch)
            if training:
                found.float().square().mean().backward()
    if batch.device.type == "cuda":
        torch.cuda.synchronize(batch.device)
    return 1000 * (time.perf_counter() - began) / steps


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument(
        "--network", type=NameList(tuple(NETWORKS)), default=list(NETWORKS), metavar="A,B"
    )
    parser.add_argument("--steps", type=Whole(1, 10_000), default=2, help="of a turn (2)")
    parser.add_argument("--turns", type=Whole(1, 1_000), default=5, help="of each way (5)")
    parser.add_argument("--threads", type=Whole(1, 4096), default=1, help="of torch (1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    json_option(parser)
    return parser


if __name__ == "__main__":
    start_as_workers()
    sys.exit(told(main))
