"""Measure adapters beside a bare loop over peft: a step of training, and texts scored by many.

Both sides have one frozen backbone with the same adapters, windows, precision and optimizer, and
take turns. Windows are made up: what is measured does not depend on what they say. Ratios are of
CPU time, since other processes hit both sides alike, but not in the same moment.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.yardstick import json_option, language_options, told, write_figures
from nmoe_flower.arguments import Parser, Whole
from nmoe_flower.backbone import configured_language
from nmoe_flower.clients.device import Device, Language, Store
from nmoe_flower.clients.language import train_adapter
from nmoe_flower.config import Config
from nmoe_flower.data.text import TextData, TextSplit
from nmoe_flower.models import require_peft
from nmoe_flower.training import autocast

__all__ = ["main"]

_RATE, _SLICE = 1e-3, 16
_VOCABULARY = 2048


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per part; returns the exit code."""
    args = _parser().parse_args(argv)
    return told(lambda: _measure(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.adapters", description=__doc__)
    language_options(parser, batch=4, batch_of="of a step")
    parser.add_argument("--experts", type=Whole(1, 64), default=8, help="that score a text (8)")
    parser.add_argument("--steps", type=Whole(1, 10**4), default=20, help="at a time (20)")
    parser.add_argument("--windows", type=Whole(1, 10**5), default=32, help="scored (32)")
    parser.add_argument("--rounds", type=Whole(1, 100), default=5, help="of each side (5)")
    json_option(parser)
    return parser


def _measure(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        ours = _language(args, Path(folder))
    bare = _Bare(ours, args)
    adapters = [_drawn(ours, args.rank, seed) for seed in range(args.experts)]
    split = ours.data.test

    def scored() -> None:
        for adapter in adapters:
            ours.load(adapter)
            ours.score(split)

    def trained() -> None:
        ours.load(ours.fresh(args.rank))
        train_adapter(ours, _RATE, args.steps)

    step = _turns(trained, lambda: bare.train(args.steps, args.batch), args.rounds)
    score = _turns(scored, lambda: bare.score(adapters, split.tokens), args.rounds)
    tokens = args.batch * split.window
    print(f"{args.backbone}, rank {args.rank}, {'bfloat16' if ours.bf16 else 'float32'}")
    parts = []
    for name, (here, there, ratio), unit in (
        (f"a step of {tokens:,} tokens", step, args.steps),
        (f"{args.windows} windows scored by {args.experts}", score, 1),
    ):
        part = {"what": name, "ms": 1e3 * here / unit, "bare": 1e3 * there / unit, "ratio": ratio}
        parts.append(part)
        print(f"{name:28} {part['ms']:9.1f} ms   bare {part['bare']:9.1f} ms   ratio {ratio:.3f}")
    write_figures(
        args.json,
        {"backbone": args.backbone, "rank": args.rank, "bf16": ours.bf16, "parts": parts},
    )
    return 0


def _turns(
    ours: Callable[[], None], bare: Callable[[], None], rounds: int
) -> tuple[float, float, float]:
    """Median CPU seconds of each side, and the median of their ratio; each is warmed up once."""
    for work in (ours, bare):
        work()
    found = []
    for _ in range(rounds):
        found.append((_seconds(ours), _seconds(bare)))
    here, there = (statistics.median(side) for side in zip(*found, strict=True))
    return here, there, statistics.median(one / other for one, other in found)


def _seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _language(args: argparse.Namespace, folder: Path) -> Language:
    """A device whose text is made up, on the backbone that is asked for."""
    config = Config.parse(
        {
            "run.system": "language",
            "data.kind": "text",
            "data.dataset": "made-up",
            "data.scheme": "natural",
            "data.num-clients": 2,
            "extractor.method": "pretrained",
            "extractor.backbone": args.backbone,
            "adapter.blocks": "all",
            "adapter.bias": False,
            "adapter.rank": args.rank,
            "adapter.batch-size": args.batch,
            "gate.methods": "likelihood",
        }
    )
    device = Device(config, 0, 2, Store(folder))
    train, test = (
        _windows(config.text.window, count, seed)
        for seed, count in enumerate((max(args.steps * args.batch, 64), args.windows))
    )
    names = ("first", "second")
    data = TextData("made up", train, test, test, names, names, "", _VOCABULARY, 0, "")
    model, digest = configured_language(config, _VOCABULARY)
    return Language(device, data, model, digest)


def _windows(window: int, count: int, seed: int) -> TextSplit:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, _VOCABULARY, (count, window)).astype(np.uint16)
    whose = np.zeros(count, np.int64)
    return TextSplit(tokens, np.ones(tokens.shape, np.uint16), whose, whose, whose)


def _drawn(ours: Language, rank: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    fresh = ours.fresh(rank)
    return {n: rng.normal(0, 0.01, v.shape).astype(np.float32) for n, v in fresh.items()}


class _Bare:
    """What somebody would write by hand: a network with adapters of peft, and a loop."""

    def __init__(self, ours: Language, args: argparse.Namespace) -> None:
        self.peft, self.bf16, self.names = require_peft(), ours.bf16, ours.model.layers
        self.network = copy.deepcopy(ours.model.network).requires_grad_(False)
        self.tokens = torch.from_numpy(ours.data.train.tokens.astype(np.int64))
        self.options = {
            "r": args.rank,
            "lora_alpha": ours.model.scale * args.rank,
            "target_modules": list(ours.model.layers),
        }
        for number in range(args.experts):
            self._add(f"e{number}")

    def _add(self, name: str) -> None:
        settings = self.peft.LoraConfig(**self.options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more than one adapter: that is meant
            self.peft.inject_adapter_in_model(settings, self.network, adapter_name=name)
        for parameter_name, parameter in self.network.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = parameter.data.float()

    def _use(self, name: str) -> None:
        for module in self.network.modules():
            if isinstance(module, self.peft.tuners.lora.LoraLayer):
                module.set_adapter(name)

    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        said: Any = self.network(tokens)
        found: torch.Tensor = said if isinstance(said, torch.Tensor) else said.logits
        return found[:, :-1].float()

    def train(self, steps: int, batch: int) -> None:
        self._use("e0")
        learners = [p for n, p in self.network.named_parameters() if ".e0." in n]
        optimizer = torch.optim.AdamW(learners, lr=_RATE, weight_decay=0.0)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        self.network.train()
        for step in range(steps):
            rows = self.tokens[step * batch : (step + 1) * batch]
            with autocast(self.bf16, torch.device("cpu")):
                loss = F.cross_entropy(self._logits(rows).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()
        self.network.eval()

    @torch.inference_mode()
    def score(self, adapters: Sequence[dict[str, np.ndarray]], tokens: np.ndarray) -> None:
        every = torch.from_numpy(tokens.astype(np.int64))
        for number in range(len(adapters)):
            self._use(f"e{number}")
            for at in range(0, len(every), _SLICE):
                rows = every[at : at + _SLICE]
                with autocast(self.bf16, torch.device("cpu")):
                    logits = self._logits(rows)
                    F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")


if __name__ == "__main__":
    sys.exit(main())
