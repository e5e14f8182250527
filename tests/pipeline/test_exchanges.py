from collections import Counter
from typing import Any

import pytest

from nmoe_flower.config import Config
from nmoe_flower.pipeline import exchanges
from nmoe_flower.server_app import cost_in_words

ALIGNMENT = {
    "run.system": "aligned", "run.controls": "", "gate.methods": "local",
    "alignment.extractor": "stage-1", "alignment.rounds": 2, "extractor.rounds": 2,
}  # fmt: skip


def counted(pipeline: Any) -> dict[str, int]:
    """Lines of ``rounds.jsonl`` by stage: one per exchange."""
    return dict(Counter(line["stage"] for line in pipeline.lines))


def test_the_count_is_what_a_run_writes(new_pipeline: Any) -> None:
    """But for the identities, which are asked before anything is recorded."""
    pipeline = new_pipeline("counted")
    pipeline()
    assert {"identity": 1, **counted(pipeline)} == exchanges(pipeline.config)


def test_the_alignment_system_on_an_extractor_of_stage_1_counts_both(new_pipeline: Any) -> None:
    """``probe`` is an upper bound: only newcomers are probed, and here is none."""
    pipeline = new_pipeline("aligned", ALIGNMENT)
    pipeline()
    assert {"identity": 1, "probe": 1, **counted(pipeline)} == exchanges(pipeline.config)


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"extractor.rounds": 25}, {"extractor": 25, "extractor-test": 13}),  # every 2; the last
        ({"extractor.rounds": 25, "run.evaluate-every": 25}, {"extractor-test": 1}),
        ({"extractor.method": "fedsc", "expert.init": "scratch", "extractor.rounds": 7,
          "contrast.exchange": "two-phase"}, {"extractor": 14}),
        ({"gate.methods": "rolling", "gate.cycles": 2}, {"gate/rolling": 20}),
        ({"gate.methods": "global"}, {"gate/global": 2}),
        ({"expert.sharing": "latents"}, {"answer": 1, "answers": 1}),
        ({"gate.shortlist": 9, "expert.sharing": "latents"},
         {"answer": 1, "answers": 1, "choices": 1, "chosen": 1}),
        ({"run.controls": "fedavg"}, {"describe": 1}),
    ],
)  # fmt: skip
def test_every_choice_counts(settings: dict[str, Any], stages: dict[str, int]) -> None:
    found = exchanges(Config.parse(settings))
    assert {stage: found[stage] for stage in stages} == stages


def test_the_cost_is_said_in_words() -> None:
    """1 + 1 + 8 + 8 + 1 + 1 + 1 + 1 = 22 exchanges of 6 s are 132 s."""
    config = Config.parse({"extractor.rounds": 8, "gate.methods": "local", "run.controls": ""})
    assert cost_in_words(config, simulated=False) == (
        "a whole run is 22 exchanges; on SuperNodes each costs about 6 s: 2 minutes"
    )


def test_an_extractor_that_is_there_costs_no_rounds() -> None:
    found = exchanges(Config.parse({"extractor.start": "runs/one"}))
    assert not {"extractor", "extractor-test"} & set(found)
