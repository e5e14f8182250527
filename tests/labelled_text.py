"""A village whose documents have classes: three styles, a client each, about two topics."""

import random
from pathlib import Path
from typing import Any

import torch

from nmoe_flower.models import SmallLM, SmallSizes

TOPICS = {"animals": "cat dog bird fur", "weather": "sun rain wind fog"}
STYLES = {"letters": "dear my yours", "notes": "buy ask 12", "tweets": "lol @me #now"}


def text_of(style: str, topic: str, number: int) -> str:
    """A document: words of its topic and of its style."""
    words = f"{TOPICS[topic]} {STYLES[style]}".split()
    return " ".join(random.Random(f"{style}{topic}{number}").choices(words, k=4))


def write_village(folder: Path, *, documents: int) -> None:
    """Write ``posts/STYLE/TOPIC/NUMBER.txt``, and a backbone that nobody has trained beside them.

    Args:
        folder: Where to.
        documents: How many of each style and topic.
    """
    for style in STYLES:
        for topic in TOPICS:
            below = folder / "posts" / style / topic
            below.mkdir(parents=True)
            for number in range(documents):
                (below / f"{number:02}.txt").write_text(text_of(style, topic, number))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallLM(SmallSizes(257, 16, 2, 2, 32))
        for block in network.blocks:
            torch.nn.init.normal_(block.down.weight, std=0.1)
    network.save(folder / "backbone")


def village_settings(folder: Path) -> dict[str, Any]:
    """What a run on the village in a folder sets."""
    return {
        "data.kind": "text",
        "data.dataset": str(folder / "posts"),
        "data.scheme": "natural",
        "data.num-clients": 3,
        "data.train-per-client": 0,
        "data.test-per-client": 0,
        "text.tokenizer": "bytes",
        "text.window": 32,
        "text.prefix": 1,
        "extractor.method": "pretrained",
        "extractor.backbone": "small-lm",
        "extractor.weights": str(folder / "backbone"),
        "head.method": "sums",
        "expert.hidden": "",
    }
