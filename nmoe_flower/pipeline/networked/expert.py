"""Stage 2: personal experts on the frozen extractor."""

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.errors import ReplyError
from nmoe_flower.pipeline.ask import alike, gather, message
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import (
    ANSWERS,
    EXPERT,
    LATENTS,
    PROTOTYPE,
    SPLITS,
    Action,
    ExpertKey,
)

__all__ = ["train_experts"]


def train_experts(run: Run) -> None:
    """Stage 2: personal experts, and what leaves of them for stage 3."""
    question = message(run.artifacts.classifier)
    prototypes, sharing = run.config.gate.asks_prototypes, run.config.expert.sharing
    wanted = [PROTOTYPE] if prototypes else []
    wanted += {"weights": [EXPERT], "latents": [LATENTS], "none": []}[sharing]
    trained = gather(
        run, "experts", Action.EXPERT, question, wanted=wanted, check=_has_named_arrays
    )
    if prototypes:
        means = {
            partition: _only(ExpertKey.MEAN, content.array_records[PROTOTYPE])
            for partition, content in trained.items()
        }
        found = alike("prototypes", means).values()
        run.artifacts.prototypes = np.stack([arrays[ExpertKey.MEAN] for arrays in found])
    if sharing == "weights":
        experts = ArrayRecord(
            {
                f"{partition}/{name}": array
                for partition, content in trained.items()
                for name, array in content.array_records[EXPERT].items()
            }
        )
        gather(run, "answers", Action.KEEP_ANSWERS, RecordDict({EXPERT: experts}))
    elif sharing == "latents":
        _exchange_latents(run, trained)


def _exchange_latents(run: Run, trained: Mapping[int, RecordDict]) -> None:
    """Experts stay at home: latents visit every expert, logits [N, E, C] come back."""
    latents = alike(
        "latents",
        {
            partition: records.to_numpy(content.array_records[LATENTS])
            for partition, content in trained.items()
        },
        rows=True,
    )
    rows = [(partition, split) for partition in latents for split in SPLITS]
    everyone = np.concatenate([latents[partition][split] for partition, split in rows])
    question = RecordDict({LATENTS: records.from_numpy({ExpertKey.LATENTS: everyone})})
    answered = gather(
        run, "answer", Action.ANSWER, question, wanted=[ANSWERS], check=_has_named_arrays
    )
    found = {
        partition: _only(ExpertKey.LOGITS, content.array_records[ANSWERS])
        for partition, content in answered.items()
    }
    logits = np.stack([one[ExpertKey.LOGITS] for one in alike("answers", found).values()], axis=1)
    ends = np.cumsum([len(latents[partition][split]) for partition, split in rows])[:-1]
    split_logits = dict(zip(rows, np.split(logits, ends), strict=True))
    gather(
        run,
        "answers",
        Action.KEEP_ANSWERS,
        {
            partition: RecordDict(
                {ANSWERS: records.from_numpy({s: split_logits[partition, s] for s in SPLITS})}
            )
            for partition in latents
        },
    )


def _only(name: str, record: ArrayRecord) -> dict[str, np.ndarray]:
    """One array of a record, under its name."""
    return {name: records.to_numpy(record)[name]}


def _has_named_arrays(content: RecordDict) -> None:
    """Refuse records without the arrays this stage reads.

    Raises:
        ReplyError: With what is missing.
    """
    named = (
        (PROTOTYPE, (ExpertKey.MEAN,)),
        (LATENTS, SPLITS),
        (ANSWERS, (ExpertKey.LOGITS,)),
    )
    for record, names in named:
        found = content.array_records.get(record)
        if found is not None and (missing := [name for name in names if name not in found]):
            raise ReplyError(f"the ArrayRecord {record!r} has no array {missing[0]!r}")
