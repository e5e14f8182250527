"""Made-up text of domains whose words differ, and what runs of a tiny language model on it set."""

import random
from collections.abc import Iterable
from pathlib import Path

WORDS = {"animals": "cat dog bird", "code": "x=1; y=2; z+=3;", "numbers": "uno dos tres"}
TINY_LANGUAGE = {
    "run.system": "language",
    "data.kind": "text",
    "data.scheme": "natural",
    "text.tokenizer": "bytes",
    "text.window": 16,
    "text.prefix": 6,
    "extractor.method": "pretrained",
    "extractor.backbone": "small-lm",
    "extractor.widths": "16,16",
    "adapter.rank": 2,
}


def write_domains(folder: Path, *, documents: int, domains: Iterable[str] = WORDS) -> Path:
    """Write ``DOMAIN/NUMBER.txt``; returns the folder.

    Args:
        folder: Where to.
        documents: How many of each domain, of 60 words each.
        domains: Which of `WORDS`.
    """
    for domain in domains:
        (folder / domain).mkdir(parents=True)
        for number in range(documents):
            drawn = random.Random(f"{domain}{number}").choices(WORDS[domain].split(), k=60)
            (folder / domain / f"{number}.txt").write_text(" ".join(drawn))
    return folder
