"""Pretrain the small language model of `text-domains` on text that no device holds.

As a program: ``python -m experiments.publish.small_lm PUBLIC OUT``. PUBLIC has a folder of text
files per domain; OUT becomes what ``extractor.weights`` and ``text.tokenizer`` name. It takes
minutes on one core.
"""

import ctypes
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from nmoe_flower.arguments import Parser
from nmoe_flower.data.text import PieceTokenizer, train_tokenizer
from nmoe_flower.models import SmallLM, SmallSizes
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import fit, seeded, use_bf16

VOCABULARY, WINDOW, BATCH, STEPS = 2048, 128, 16, 500
PEAK, WARMUP, DECAY = 3e-3, 30, 0.1


def texts_of(folder: Path) -> list[str]:
    """Every document, the domains in turn, so that none comes last."""
    domains = [
        sorted(path for path in one.rglob("*") if path.is_file())
        for one in sorted(folder.iterdir())
        if one.is_dir()
    ]
    order = sorted((at / len(files), path) for files in domains for at, path in enumerate(files))
    return [path.read_text(encoding="utf-8") for _, path in order]


def tokens_of(texts: list[str], tokenizer: PieceTokenizer) -> np.ndarray:
    """All documents in a row, each with its end."""
    found = [np.array([*tokenizer.encode(text), tokenizer.end], np.uint16) for text in texts]
    return np.concatenate(found)


def pretrain(tokens: np.ndarray, *, steps: int = STEPS, seed: int = 0) -> tuple[SmallLM, float]:
    """Train a fresh model on windows that begin anywhere; returns it with its last loss.

    Args:
        tokens: All text in a row.
        steps: How many steps, of ``BATCH`` windows each.
        seed: What weights and windows are drawn from.
    """
    with seeded(seed):
        model = SmallLM(SmallSizes(VOCABULARY, window=WINDOW))
    bf16 = use_bf16("auto", torch.device("cpu"), worthwhile=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK, weight_decay=DECAY, betas=(0.9, 0.95)
    )
    places = numpy_stream(seed, "pretraining").integers(0, len(tokens) - WINDOW, (steps, BATCH))
    shown: list[float] = []

    def batches() -> Iterator[torch.Tensor]:
        for step, starts in enumerate(places):
            rising = min((step + 1) / WARMUP, 1.0)
            falling = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = PEAK * rising * falling
            rows = tokens[starts[:, None] + np.arange(WINDOW)]
            yield torch.from_numpy(rows.astype(np.int64))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        logits = model(rows)[:, :-1].float()
        found = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        shown.append(float(found.detach()))
        if len(shown) % 10 == 0:
            _give_back()
        if len(shown) % 50 == 0:
            mean = np.mean(shown[-50:])
            print(f"step {len(shown)} of {steps}: {mean:.3f} nats per token", flush=True)
        return found

    fit(model, batches(), loss, optimizer=optimizer, max_grad_norm=1.0, bf16=bf16)
    return model, float(np.mean(shown[-50:]))


def _give_back() -> None:
    """Let glibc return what is free: its heap grows by 30 MB a step in training otherwise."""
    with suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    """Train tokenizer and model, write both."""
    parser = Parser(description=__doc__)
    parser.add_argument("public", type=Path, help="a folder of text files per domain")
    parser.add_argument("out", type=Path, help="the folder to write")
    given = parser.parse_args()
    started = time.monotonic()
    texts = texts_of(given.public)
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tokens = tokens_of(texts, tokenizer)
    print(f"{len(texts):,} documents, {len(tokens):,} tokens", flush=True)
    model, loss = pretrain(tokens)
    notes = {"trained_on_tokens": STEPS * BATCH * WINDOW, "loss": round(loss, 4)}
    model.save(given.out, notes)
    tokenizer.save(given.out / "tokenizer.json")
    print(f"{given.out}: {loss:.3f} nats per token, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
