"""Stages 2 and 3 with shortlists: nobody asks everybody about everything.

A client learns the gate from the answers of S experts to its hold-out. For the evaluation each
latent of a test goes, as it would among peers, to the experts that a gate sends it to, and to no
other. What a client sends and gets does not grow with the number of clients, but for the tables
of the gates.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.errors import ReplyError, RoundError
from nmoe_flower.pipeline.ask import alike, gather
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import (
    ANSWERS,
    CHOSEN,
    EXPERT,
    HOLDOUT,
    LATENTS,
    MEANS,
    SHORTLIST,
    Action,
    ChosenKey,
    ExpertKey,
    ShortlistKey,
)
from nmoe_flower.shortlists import Shortlists, draw_shortlists

__all__ = ["answers_of_chosen", "exchange_shortlisted", "means_for", "shortlists_of"]

Arrays = dict[str, np.ndarray]


def shortlists_of(run: Run) -> dict[int, np.ndarray] | None:
    """Ids of the experts that each client learns the gate from; None: all."""
    lists = run.artifacts.shortlists
    return dict(enumerate(lists[ShortlistKey.EXPERTS])) if lists else None


def means_for(run: Run, experts: np.ndarray | None = None) -> dict[str, ArrayRecord]:
    """What embeddings of these experts, or of all, are made of at a client, where there are any."""
    means = run.artifacts.normal_means
    if means is None or not run.config.has_embeddings:
        return {}
    return {
        MEANS: records.from_numpy({ExpertKey.MEAN: means if experts is None else means[experts]})
    }


def exchange_shortlisted(run: Run, trained: Mapping[int, RecordDict]) -> None:
    """Draw the shortlists and give every client what the experts on its own say.

    That is their weights, or, where experts stay at home, their answers to its hold-out.
    """
    assert run.artifacts.normal_means is not None
    drawn = draw_shortlists(
        run.artifacts.normal_means, run.config.gate.shortlist, seed=run.config.run.seed
    )
    run.artifacts.shortlists = {
        ShortlistKey.EXPERTS: drawn.experts,
        ShortlistKey.LOG_WEIGHTS: drawn.log_weights,
    }
    give = _weights if run.config.expert.sharing == "weights" else _answers
    gather(
        run,
        "answers",
        Action.KEEP_ANSWERS,
        {
            client: RecordDict(
                {
                    name: record,
                    **means_for(run, drawn.experts[client]),
                    SHORTLIST: records.from_numpy(
                        {
                            ShortlistKey.EXPERTS: drawn.experts[client],
                            ShortlistKey.LOG_WEIGHTS: drawn.log_weights[client],
                        }
                    ),
                }
            )
            for client, name, record in give(run, drawn, trained)
        },
    )


def answers_of_chosen(run: Run, question: RecordDict) -> dict[int, RecordDict]:
    """Ask the experts that gates send the clients' tests to: what each client is told of it.

    Args:
        run: The run in progress.
        question: The gates, as for an evaluation.

    Raises:
        RoundError: A client did not answer, or not in the common form, or not about all latents.
    """
    check = partial(_check_pairs, run.config.data.num_clients)
    told = gather(run, "choices", Action.CHOOSE, question, wanted=[CHOSEN], check=check)
    pairs = alike(
        "choices", {client: _chosen(content) for client, content in told.items()}, rows=True
    )
    origin = np.concatenate([np.full(len(one[ChosenKey.ROWS]), c) for c, one in pairs.items()])
    experts = np.concatenate([one[ChosenKey.EXPERTS] for one in pairs.values()])
    latents = np.concatenate(
        [one[ChosenKey.LATENTS][one[ChosenKey.ROWS]] for one in pairs.values()]
    )
    order = np.argsort(experts, kind="stable")
    asked, counts = np.unique(experts, return_counts=True)
    parts = dict(zip(asked.tolist(), np.split(order, np.cumsum(counts))[:-1], strict=True))
    logits = _asked(run, "chosen", {e: latents[at] for e, at in parts.items()}) if parts else {}
    width = next(iter(logits.values())).shape[1] if logits else 1
    found = np.zeros((len(experts), width), np.float32)
    for expert, at in parts.items():
        found[at] = logits[expert]
    return {
        client: RecordDict(
            {CHOSEN: records.from_numpy({ChosenKey.LOGITS: found[origin == client]})}
        )
        for client in pairs
    }


def _weights(
    run: Run, drawn: Shortlists, trained: Mapping[int, RecordDict]
) -> Iterator[tuple[int, str, ArrayRecord]]:
    """The experts on each list; clients share the arrays, nothing is copied."""
    experts = {
        client: records.of_kind(content, ArrayRecord)[EXPERT] for client, content in trained.items()
    }
    for client, listed in enumerate(drawn.experts.tolist()):
        yield client, EXPERT, records.together({expert: experts[expert] for expert in listed})


def _answers(
    run: Run, drawn: Shortlists, trained: Mapping[int, RecordDict]
) -> Iterator[tuple[int, str, ArrayRecord]]:
    """What the experts on each list say to the hold-outs, which visit them."""
    told = {
        c: records.to_numpy(records.of_kind(content, ArrayRecord)[LATENTS])
        for c, content in trained.items()
    }
    holdouts = {c: arrays[HOLDOUT] for c, arrays in alike("latents", told, rows=True).items()}
    askers = drawn.askers()
    asked = {
        expert: np.concatenate([holdouts[client] for client in clients.tolist()])
        for expert, clients in enumerate(askers)
    }
    logits = _asked(run, "answer", asked)
    said: dict[tuple[int, int], np.ndarray] = {}
    for expert, clients in enumerate(askers):
        ends = np.cumsum([len(holdouts[client]) for client in clients.tolist()])[:-1]
        parts = np.split(logits[expert], ends)
        said |= {(client, expert): p for client, p in zip(clients.tolist(), parts, strict=True)}
    for client, listed in enumerate(drawn.experts.tolist()):
        answers = np.stack([said[client, expert] for expert in listed], axis=1)
        yield client, ANSWERS, records.from_numpy({HOLDOUT: answers})


def _asked(run: Run, stage: str, latents: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """What experts say to latents [n, D] of each: logits [n, C]."""

    def check(content: RecordDict) -> None:
        if ExpertKey.LOGITS not in records.of_kind(content, ArrayRecord)[ANSWERS]:
            raise ReplyError(f"the ArrayRecord {ANSWERS!r} has no array {ExpertKey.LOGITS!r}")

    answered = gather(
        run,
        stage,
        Action.ANSWER,
        {
            expert: RecordDict({LATENTS: records.from_numpy({ExpertKey.LATENTS: rows})})
            for expert, rows in latents.items()
        },
        only=sorted(latents),
        wanted=[ANSWERS],
        check=check,
    )
    like = alike(
        stage,
        {
            expert: {
                ExpertKey.LOGITS: records.to_numpy(records.of_kind(c, ArrayRecord)[ANSWERS])[
                    ExpertKey.LOGITS
                ]
            }
            for expert, c in answered.items()
        },
        rows=True,
    )
    logits = {expert: arrays[ExpertKey.LOGITS] for expert, arrays in like.items()}
    for expert, rows in latents.items():
        if logits[expert].shape[:1] != rows.shape[:1]:
            raise RoundError(
                f"{stage}: client {expert} was asked about {len(rows)} latents, and its answers "
                f"have shape {logits[expert].shape}"
            )
    return logits


def _chosen(content: RecordDict) -> Arrays:
    arrays = records.to_numpy(records.of_kind(content, ArrayRecord)[CHOSEN])
    return {key: arrays[key] for key in (ChosenKey.LATENTS, ChosenKey.ROWS, ChosenKey.EXPERTS)}


def _check_pairs(num_experts: int, content: RecordDict) -> None:
    """Refuse pairs that name a latent or an expert which is not there.

    Raises:
        ReplyError: With what is wrong.
    """
    arrays = _chosen(content)
    latents, rows, experts = (
        arrays[key] for key in (ChosenKey.LATENTS, ChosenKey.ROWS, ChosenKey.EXPERTS)
    )
    if latents.ndim != 2 or rows.ndim != 1 or rows.shape != experts.shape:
        raise ReplyError(
            f"latents {latents.shape}, rows {rows.shape} and experts {experts.shape} are no pairs"
        )
    for what, ids, count in (("latents", rows, len(latents)), ("experts", experts, num_experts)):
        if ids.dtype.kind not in "iu" or (len(ids) and not 0 <= ids.min() <= ids.max() < count):
            raise ReplyError(f"it names {what} that are not among the {count}, 0 to {count - 1}")
