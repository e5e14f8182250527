"""How much a run has to do after stage 1, and how long that may take where nobody measured it."""

from nmoe_flower.catalogue import ADAPTER_CONTROLS, BASELINES
from nmoe_flower.config import Config

__all__ = ["guessed_after", "guessed_stage_1", "work_after"]

# Seconds on one core. They tell a minute from an hour, no more.
_ROUND = {"digits": (0.1, 0.05), "": (1.0, 0.1)}  # of stage 1, of a head or a gate
_IMAGE = {"digits": 3e-5, "": 2e-4}  # forward and backward through a small network
_STEP = 2e-3  # of any network, beside that
_TOKEN = 4e-11  # forward and backward through a frozen language model, by parameter
_TEXT_STEP = 3e-2
_PARAMETERS = {"small-lm": 2.2e6, "": 1.35e8}  # of a language model


def work_after(config: Config) -> float:
    """What a run has to do after stage 1, in units that suit its system.

    Steps of all devices together of a language model and of a published system, rounds of an
    alignment; 1 for a networked mixture, of which rounds do not tell much.
    """
    if config.run.system == "language":
        return _steps_of_text(config)
    if config.run.system == "aligned":
        return config.alignment.rounds
    if config.run.system in BASELINES:
        settings = config.baseline
        clients = config.data.num_clients * settings.fraction_train
        return settings.rounds * settings.local_steps * clients
    return 1


def guessed_stage_1(config: Config) -> float:
    """Seconds of all rounds of stage 1, by what a round takes of images of that size."""
    return config.extractor.rounds * _of(_ROUND, config)[0]


def guessed_after(config: Config) -> float:
    """Seconds of what comes after stage 1, by its steps or rounds."""
    work = work_after(config)
    if config.run.system == "language":
        tokens = config.adapter.batch_size * config.text.window
        size = _PARAMETERS.get(config.extractor.backbone, _PARAMETERS[""])
        return work * (_TEXT_STEP + tokens * size * _TOKEN)
    if config.run.system in BASELINES:
        image = _IMAGE.get(config.data.dataset, _IMAGE[""])
        return work * (_STEP + config.baseline.batch_size * image)
    rounds = config.head.rounds + config.gate.rounds * len(config.gate.methods)
    return (work if config.run.system == "aligned" else rounds) * _of(_ROUND, config)[1]


def _steps_of_text(config: Config) -> int:
    settings = config.adapter
    averages = sum(ADAPTER_CONTROLS[name].averaged for name in settings.controls)
    each = settings.steps * len(settings.learning_rates)
    each += averages * settings.steps_of_averages * len(settings.rates_of_averages)
    return each * config.data.num_clients


def _of(seconds: dict[str, tuple[float, float]], config: Config) -> tuple[float, float]:
    return seconds.get(config.data.dataset, seconds[""])
