"""Stage 2: personal experts on the frozen extractor."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.errors import ReplyError
from nmoe_flower.pipeline.ask import alike, gather, message
from nmoe_flower.pipeline.networked.shortlist import exchange_shortlisted, means_for
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import (
    ANSWERS,
    CONFIG,
    EXPERT,
    HOLDOUT,
    LATENTS,
    PARAMETERS,
    PROTOTYPE,
    Action,
    ExpertKey,
)

__all__ = ["train_experts"]


def train_experts(run: Run) -> None:
    """Stage 2: personal experts, and what leaves of them for stage 3."""
    carried = set() if run.artifacts.carried is None else set(run.artifacts.carried.tolist())
    question = message(run.artifacts.classifier)
    brings = RecordDict({**question, CONFIG: ConfigRecord({ExpertKey.CARRIED: True})})
    asked = {p: brings if p in carried else question for p in run.partitions.values()}
    check = partial(_has_named_arrays, _leaving(run), _means(run))
    sharing, means = run.config.expert.sharing, _means(run)
    wanted = [PROTOTYPE] if means else []
    wanted += {"weights": [EXPERT], "latents": [LATENTS], "none": []}[sharing]
    trained = gather(
        run, "experts", Action.EXPERT, asked if carried else question, wanted=wanted, check=check
    )
    if means:
        told = {
            partition: _only(means, records.of_kind(content, ArrayRecord)[PROTOTYPE])
            for partition, content in trained.items()
        }
        found = alike("prototypes", told).values()
        stacked = {name: np.stack([arrays[name] for arrays in found]) for name in means}
        run.artifacts.prototypes = stacked.get(ExpertKey.MEAN)
        normal = stacked.get(ExpertKey.NORMAL_MEAN)
        before = run.artifacts.normal_means
        if normal is not None and before is not None and carried:
            normal[sorted(carried)] = before[sorted(carried)]
        run.artifacts.normal_means = normal
    sizes = [records.metrics_of(content).get(PARAMETERS, 0) for content in trained.values()]
    run.artifacts.expert_parameters = int(max(sizes))
    if run.config.has_shortlists:
        exchange_shortlisted(run, trained)
    elif sharing == "weights":
        experts = records.together(
            {p: records.of_kind(content, ArrayRecord)[EXPERT] for p, content in trained.items()}
        )
        gather(run, "answers", Action.KEEP_ANSWERS, RecordDict({EXPERT: experts, **means_for(run)}))
    elif sharing == "latents":
        _exchange_latents(run, trained)


def _exchange_latents(run: Run, trained: Mapping[int, RecordDict]) -> None:
    """Experts stay at home: latents visit every expert, logits [N, E, C] come back.

    Validation images travel as an array of their own: how many rows are multiplied at once moves
    the last bits of a product, and numbers of the tests are the same with and without them.
    """
    latents = alike(
        "latents",
        {
            partition: records.to_numpy(records.of_kind(content, ArrayRecord)[LATENTS])
            for partition, content in trained.items()
        },
        rows=True,
    )
    splits = _splits(run)
    parcels = _parcels(splits)
    rows = {
        asked: [(partition, split) for partition in latents for split in within]
        for asked, _, within in parcels
    }
    everyone = {
        asked: np.concatenate([latents[partition][split] for partition, split in places])
        for asked, places in rows.items()
    }
    question = RecordDict({LATENTS: records.from_numpy(everyone)})
    names = [name for _, name, _ in parcels]
    answered = gather(
        run,
        "answer",
        Action.ANSWER,
        question,
        wanted=[ANSWERS],
        check=partial(_has_named_arrays, splits, ()),
    )
    found = alike(
        "answers",
        {
            partition: _only(names, records.of_kind(content, ArrayRecord)[ANSWERS])
            for partition, content in answered.items()
        },
    )
    split_logits: dict[tuple[int, str], np.ndarray] = {}
    for asked, name, _ in parcels:
        logits = np.stack([one[name] for one in found.values()], axis=1)
        ends = np.cumsum([len(latents[partition][split]) for partition, split in rows[asked]])[:-1]
        split_logits |= dict(zip(rows[asked], np.split(logits, ends), strict=True))
    gather(
        run,
        "answers",
        Action.KEEP_ANSWERS,
        {
            partition: RecordDict(
                {
                    ANSWERS: records.from_numpy({s: split_logits[partition, s] for s in splits}),
                    **means_for(run),
                }
            )
            for partition in latents
        },
    )


def _splits(run: Run) -> tuple[str, ...]:
    """Which latents of a client every expert answers."""
    return (HOLDOUT, *run.config.data.tests)


def _means(run: Run) -> list[str]:
    """Which means of a client's latents leave it, for gates and for shortlists."""
    asked = {
        ExpertKey.MEAN: run.config.gate.asks_prototypes,
        ExpertKey.NORMAL_MEAN: run.config.asks_normal_means,
    }
    return [str(name) for name, wanted in asked.items() if wanted]


def _leaving(run: Run) -> tuple[str, ...]:
    """Which latents of a client leave it in stage 2, where experts stay at home."""
    return (HOLDOUT,) if run.config.has_shortlists else _splits(run)


def _parcels(splits: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Arrays of an exchange of latents: name on the way down, on the way up, splits in it."""
    tests = [split for split in splits if split != VALIDATION]
    found: list[tuple[str, str, list[str]]] = [(ExpertKey.LATENTS, ExpertKey.LOGITS, tests)]
    if VALIDATION in splits:
        found.append((ExpertKey.VALIDATION, ExpertKey.VALIDATION, [VALIDATION]))
    return found


def _only(names: Sequence[str], record: ArrayRecord) -> dict[str, np.ndarray]:
    """Some arrays of a record, under their names."""
    arrays = records.to_numpy(record)
    return {name: arrays[name] for name in names}


def _has_named_arrays(splits: Sequence[str], means: Sequence[str], content: RecordDict) -> None:
    """Refuse records without the arrays this stage reads, latents of ``splits`` among them.

    Raises:
        ReplyError: With what is missing.
    """
    named = (
        (PROTOTYPE, means),
        (LATENTS, splits),
        (ANSWERS, [name for _, name, _ in _parcels(splits)]),
    )
    for record, names in named:
        found = records.of_kind(content, ArrayRecord).get(record)
        if found is not None and (missing := [name for name in names if name not in found]):
            raise ReplyError(f"the ArrayRecord {record!r} has no array {missing[0]!r}")
