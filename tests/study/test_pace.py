"""How long a run may take, where nobody measured anything like it: a minute or an hour."""

from pathlib import Path

import pytest

from nmoe_flower.config import Config
from nmoe_flower.study import Study
from nmoe_flower.study.pace import guessed_after, work_after

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def first_of(name: str) -> Config:
    return Study.load(EXPERIMENTS / f"{name}.toml").runs[0].config


def test_work_is_counted_in_steps_of_all_devices() -> None:
    # 8 clients: 40 steps of an expert at 2 rates, as many of the average at 2 rates.
    assert work_after(first_of("text-smollm2")) == 8 * (40 * 2 + 40 * 2)
    # 1,000 rounds of 10 of 100 clients, 250 steps each.
    assert work_after(first_of("pfl-moe")) == 1000 * 10 * 250
    assert work_after(Config.load(None, ["run.system=aligned", "alignment.rounds=7"])) == 7
    assert work_after(Config.load(None, [])) == 1


def test_twice_the_steps_take_twice_as_long() -> None:
    once, twice = (
        Config.load(None, ["run.system=fedem", f"baseline.rounds={rounds}"]) for rounds in (20, 40)
    )
    assert guessed_after(twice) == pytest.approx(2 * guessed_after(once))


def test_an_hour_is_told_from_a_minute() -> None:
    """SmolLM2 took 65 minutes of a core (results/text-smollm2); fedavg on the digits seconds."""
    assert 30 < guessed_after(first_of("text-smollm2")) / 60 < 130
    assert guessed_after(Config.load(None, ["run.system=fedavg"])) < 60
