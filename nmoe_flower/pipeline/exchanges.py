"""How often a run talks to its clients. On real SuperNodes every time costs seconds."""

from nmoe_flower.catalogue import ADAPTER_CONTROLS, BASELINES, CONTROLS, VALIDATION
from nmoe_flower.config import Config
from nmoe_flower.pipeline.language import state_gates
from nmoe_flower.pipeline.networked import asks_initial, trainer_of

__all__ = ["SECONDS_PER_EXCHANGE", "exchanges"]

SECONDS_PER_EXCHANGE = 6.0  # an idle SuperNode looks every 3 s, then starts a Python process


def exchanges(config: Config) -> dict[str, int]:
    """Round trips by stage, as in ``rounds.jsonl``; an upper bound for the alignment system.

    >>> counted = exchanges(Config.parse({"gate.methods": "federated", "run.controls": ""}))
    >>> counted["extractor"], counted["extractor-test"], sum(counted.values())
    (120, 10, 176)
    """
    if config.run.system == "aligned":
        return _alignment(config)
    if config.run.system == "language":
        return _language(config)
    if config.run.system in BASELINES:
        settings = config.baseline
        tests = -(-settings.rounds // settings.evaluate_every) if settings.evaluate_every else 0
        counted = {
            "identity": 1, "describe": 1, "initial": 1, "baseline": settings.rounds,
            "baseline-test": tests, "evaluation": 1,
        }  # fmt: skip
        return counted | _stage_1_before(config)
    counted = {"identity": 1, "describe": 1, **_extractor(config)}
    if asks_initial(config):
        counted["initial"] = 1
    if config.head.standardises and not (config.sums_come_first and config.extractor.start):
        counted["sums"] = 1
        if config.sums_come_first:
            counted["standard"] = 1
    if config.head.rounds:
        counted |= {"latents": 1, "head": config.head.rounds}
    counted["experts"] = 1
    counted |= {"weights": {"answers": 1}, "latents": {"answer": 1, "answers": 1}, "none": {}}[
        config.expert.sharing
    ]
    if config.has_shortlists:
        counted |= {"choices": 1, "chosen": 1}
    for method in config.gate.methods:
        if trainer := trainer_of(method):
            counted[f"gate/{method}"] = trainer.exchanges(config)
    if any(CONTROLS[name].trained for name in config.run.controls):
        counted["controls"] = 1
    return {**counted, "evaluation": 1}


def _extractor(config: Config) -> dict[str, int]:
    settings = config.extractor
    if settings.start or settings.is_given:
        return {}
    rounds = settings.rounds
    every = config.run.evaluate_every or max(1, rounds // 10)
    phases = 2 if settings.method == "fedsc" and config.contrast.exchange == "two-phase" else 1
    return {"extractor": phases * rounds, "extractor-test": -(-rounds // every)}


def _alignment(config: Config) -> dict[str, int]:
    rounds, every = config.alignment.rounds, max(1, config.alignment.evaluate_every)
    tests = -(-rounds // every)
    counted = {
        "identity": 1, "describe": 1, "initial": 1, "probe": 1,
        "alignment": rounds, "alignment-test": tests, "whole": 1, "placed": 1,
    }  # fmt: skip
    return counted | _stage_1_before(config)


def _stage_1_before(config: Config) -> dict[str, int]:
    """What stage 1 adds where another system stands on its extractor."""
    if not config.has_stage_1:
        return {}
    return {"initial": 2, "extractor/given": 1, **_extractor(config)}


def _language(config: Config) -> dict[str, int]:
    settings = config.adapter
    counted = {"identity": 1, "describe": 1, "experts": 1}
    if gates := state_gates(config.text_gates):
        counted["sums"] = 1
        if "federated" in gates:
            counted |= {"held-out": 1, "gate/federated": config.gate.rounds}
    averaged = [name for name in settings.controls if ADAPTER_CONTROLS[name].averaged]
    rates = settings.rates_of_averages
    for name in averaged:
        for rate in rates:
            stage = name if len(rates) == 1 else f"{name}@{rate:g}"
            counted["initial"] = counted.get("initial", 0) + 1
            counted[stage] = settings.steps_of_averages // settings.local_steps
            if len(rates) > 1:
                counted[f"{stage}/{VALIDATION}"] = 1
    return {**counted, "evaluation": 1}
