"""A hundred queries among peers that change their mood all the time."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.query import SILENT
from nmoe_flower.inference.ask.router import RemoteExperts
from nmoe_flower.seeds import numpy_stream

MOODS = ["right", "right", "right", "nan", "garbage", "one-row-more", "busy", "raises", "gone"]
PEERS, QUERIES = 5, 100


def test_every_row_of_a_hundred_queries_is_answered_rightly(
    neighbourhood: Callable[..., Any],
) -> None:
    """No hang is among the moods, so nothing here waits for a deadline."""
    around = neighbourhood(PEERS)
    rng = numpy_stream(0, "soak")
    latents = torch.from_numpy(rng.normal(size=(16, 4)).astype(np.float32))
    everyone = torch.arange(PEERS + 1).expand(16, -1)
    truth = around.logits(latents, everyone)
    scores = torch.from_numpy(rng.normal(size=(16, PEERS + 1)).astype(np.float32))
    threads = set(threading.enumerate())
    with RemoteExperts(
        around.list,
        own=0,
        local=around.experts[0],
        ranking=lambda latents: scores,
        deadline=60.0,
        make_breaker=lambda: Breaker(cooldown=0.001, longest=0.01),
    ) as router:
        failed = answered = 0
        for _ in range(QUERIES):
            change_moods(around, rng)
            top_k = int(rng.integers(1, 4))
            ids = scores.topk(top_k, dim=1).indices
            logits, record = router.ask(latents, ids)
            by = torch.from_numpy(record.answered_by)
            assert (by != SILENT).any(dim=1).all()
            expected = truth.take_along_dim(by.clamp(min=0)[..., None], dim=1)
            assert torch.allclose(logits[by != SILENT], expected[by != SILENT], atol=1e-6)
            assert logits[by == SILENT].isnan().all()
            outcomes = [sent.outcome for sent in record.sent]
            answered += outcomes.count("answered")
            failed += sum(one not in ("answered", "open", "unfinished") for one in outcomes)
        states = router.states()
    assert sum(state.answered for state in states) == answered
    assert sum(sum(state.failures.values()) for state in states) == failed
    assert answered > 100
    assert failed > 50
    assert set(threading.enumerate()) <= threads


def change_moods(around: Any, rng: np.random.Generator) -> None:
    for partition, peer in around.peers.items():
        if rng.random() < 0.3:
            mood = str(rng.choice(MOODS))
            if (mood == "gone") != (peer.mood == "gone"):
                (around.stop if mood == "gone" else around.start)(partition)
            peer.mood = mood
