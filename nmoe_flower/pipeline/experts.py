"""Stage 2: personal experts on the frozen extractor."""

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.pipeline.arrays import kept, message
from nmoe_flower.pipeline.gather import gather
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ANSWERS, EXPERT, LATENTS, PROTOTYPE, SPLITS, Action

__all__ = ["train_experts"]


def train_experts(run: Run) -> None:
    """Stage 2: personal experts, and what leaves of them for stage 3."""
    classifier = kept(run, "classifier")
    prototypes, sharing = "prototype" in run.config.gate.methods, run.config.expert.sharing
    wanted = [PROTOTYPE] if prototypes else []
    wanted += {"weights": [EXPERT], "latents": [LATENTS], "none": []}[sharing]
    trained = gather(run, "experts", Action.EXPERT, message(classifier), wanted=wanted)
    if prototypes:
        means = [
            records.to_numpy(content.array_records[PROTOTYPE])["mean"]
            for content in trained.values()
        ]
        run.arrays["prototypes"] = np.stack(means)
    if sharing == "weights":
        experts = ArrayRecord(
            {
                f"{partition}/{name}": array
                for partition, content in trained.items()
                for name, array in content.array_records[EXPERT].items()
            }
        )
        gather(run, "answers", Action.ANSWERS, RecordDict({EXPERT: experts}))
    elif sharing == "latents":
        _exchange_latents(run, trained)


def _exchange_latents(run: Run, trained: Mapping[int, RecordDict]) -> None:
    """Experts stay at home: latents visit every expert, logits [N, E, C] come back."""
    latents = {
        partition: records.to_numpy(content.array_records[LATENTS])
        for partition, content in trained.items()
    }
    rows = [(partition, split) for partition in latents for split in SPLITS]
    everyone = np.concatenate([latents[partition][split] for partition, split in rows])
    question = RecordDict({LATENTS: records.from_numpy({"latents": everyone})})
    answered = gather(run, "answer", Action.ANSWER, question, wanted=[ANSWERS])
    logits = np.stack(
        [records.to_numpy(c.array_records[ANSWERS])["logits"] for c in answered.values()], axis=1
    )
    ends = np.cumsum([len(latents[partition][split]) for partition, split in rows])[:-1]
    split_logits = dict(zip(rows, np.split(logits, ends), strict=True))
    gather(
        run,
        "answers",
        Action.ANSWERS,
        {
            partition: RecordDict(
                {ANSWERS: records.from_numpy({s: split_logits[partition, s] for s in SPLITS})}
            )
            for partition in latents
        },
    )
