"""What runs measure, known before they run: the gates, tests and metrics of their results."""

from collections.abc import Iterable, Iterator
from functools import cache

from nmoe_flower.catalogue import BASELINES
from nmoe_flower.config import Config
from nmoe_flower.results import COST
from nmoe_flower.study.costs import COSTS, OF_A_GATE

__all__ = [
    "ROW_METRICS",
    "SHARES",
    "TEXT_LOSSES",
    "asking_gates_of",
    "gates_of",
    "measured_by",
    "numbers_of",
    "tests_of",
]

# Of a row of results.json; the second system and published ones have the first four.
ROW_METRICS = (
    "accuracy",
    "worst_client",
    "balanced_accuracy",
    "macro_f1",
    "auc",
    "local_ratio",
    "bytes_per_sample",
)
SHARES = ROW_METRICS[:6]
"""Those that lie between 0 and 1."""
_PLAIN_METRICS = ROW_METRICS[:4]
TEXT_LOSSES = ("bits_per_byte", "perplexity", "worst_bits_per_byte", "pooled_bits_per_byte")
"""Of rows on text; less is better."""
_TEXT_METRICS = (*TEXT_LOSSES, *ROW_METRICS[-2:])
_ASKING_CONTROLS = ("control:centralized",)  # a mixture, trained in one place
_EVERY = ("seconds", "minutes", "exchanges", "bytes_per_device")
_REPRESENTATION = (
    "effective_rank",
    "dimensions",
    "noise_edge",
    "collapse",
    "probe_accuracy",
    "knn_accuracy",
    "alignment",
    "uniformity",
)
_PRIVACY = ("epsilon", "delta", "budget", "releases")
_PRIVATE_WEIGHTS = ("weights.epsilon", "weights.steps", "together.epsilon")
_ALIGNMENT = ("rounds", "load_variation", "simulated_seconds")


def gates_of(config: Config) -> tuple[str, ...]:
    """The gates and controls that a run has rows of, as ``results.json`` calls them.

    >>> gates_of(Config.parse({"gate.methods": "random,federated", "run.controls": "fedavg"}))
    ('random', 'random+prior', 'federated', 'federated+prior', 'control:fedavg', \
'control:fedavg+prior')
    >>> gates_of(Config.parse({"run.system": "aligned"}))
    ('mixture', 'placed')
    >>> gates_of(Config.parse({"run.system": "fedem"}))
    ('fedem', 'uniform', 'random', 'oracle')
    """
    if config.run.system in BASELINES:
        return BASELINES[config.run.system].answers or (config.run.system,)
    if config.run.system == "aligned":
        return ("mixture", "placed")
    if config.run.system == "language":
        return (*config.text_gates, *(f"control:{name}" for name in _text_controls(config)))
    found = ["local"] if config.expert.sharing == "none" else list(config.gate.methods)
    controls = config.run.controls
    left = config.extractor.shares_head or config.head.rounds
    if "fedavg" in controls and left and config.head.method == "fedavg":
        found.append("control:fedavg")
    if config.run.shows_ridge and config.head.asks_sums and not config.sums_come_first:
        found.append("control:ridge")
    if "local-classifier" in controls:
        found.append("control:local-classifier")
    if "centralized" in controls:
        found.append("control:centralized")
    if "pooled-head" in controls:
        found.append("control:pooled-head")
    return tuple(_with_prior(found, config.gate.prior != "none"))


def asking_gates_of(config: Config) -> tuple[str, ...]:
    """The gates that ask experts, and so have a routing in ``results.json``.

    >>> asking_gates_of(Config.parse({"gate.methods": "federated", "run.controls": "fedavg"}))
    ('federated',)
    >>> asking_gates_of(Config.parse({"run.system": "fedem"}))
    ()
    """
    if config.run.system in BASELINES:
        return ()
    return tuple(
        gate
        for gate in gates_of(config)
        if gate in _ASKING_CONTROLS or not (gate.startswith("control:") or gate.endswith("+prior"))
    )


def _text_controls(config: Config) -> tuple[str, ...]:
    alone = config.expert.sharing == "none"  # nobody has all experts then
    return tuple(n for n in config.adapter.controls if not (alone and n in ("soup", "uniform")))


def _with_prior(gates: Iterable[str], corrected: bool) -> Iterable[str]:
    for gate in gates:
        yield gate
        if corrected and gate != "control:local-classifier":
            yield f"{gate}+prior"


def tests_of(config: Config) -> tuple[str, ...]:
    """The tests that a run has rows of.

    >>> tests_of(Config.parse({}))
    ('local', 'iid')
    """
    return config.data.tests


def measured_by(metric: str) -> tuple[str, ...]:
    """What a metric differs by within a run: gate and test, the gate alone, or nothing.

    >>> measured_by("macro_f1"), measured_by("bits_per_byte"), measured_by("exchanges")
    (('gate', 'test'), ('gate', 'test'), ('gate',))
    >>> measured_by("minutes"), measured_by("representation.probe_accuracy")
    ((), ())
    """
    if metric in OF_A_GATE:
        return ("gate",)
    return () if "." in metric or metric in COSTS else ("gate", "test")


def numbers_of(config: Config) -> tuple[str, ...]:
    """What can be asked of a run: metrics of its rows, paths in its results, its settings.

    >>> {"accuracy", "stages.extractor.seconds", "data.tau"} <= set(numbers_of(Config.parse({})))
    True
    """
    both = config.run.system == "networked"
    language = config.run.system == "language"
    metrics = _TEXT_METRICS if language else ROW_METRICS if both else _PLAIN_METRICS
    found = [*metrics, *_EVERY]
    found += ["parameters", *_by_owner(config)] if both else []
    found += [f"stages.{stage}.{cost}" for stage in _stages(config) for cost in COST]
    if language:
        found += [f"learning_rates.{name}" for name in _text_controls(config)]
    elif config.run.system == "aligned":
        found += [f"alignment.{name}" for name in _ALIGNMENT]
    if config.extractor.method == "fedsc" and not config.extractor.start:
        found += [f"representation.{name}" for name in _REPRESENTATION]
    if config.privacy.enabled:
        found.append("noise_multiplier")
    if config.privacy.enabled or config.privacy.weights:
        found += [f"privacy.{name}" for name in _PRIVACY]
    if config.privacy.weights:
        found += [f"privacy.{name}" for name in _PRIVATE_WEIGHTS]
    return (*found, *_settings())


@cache
def _settings() -> tuple[str, ...]:
    """The keys of every configuration."""
    return tuple(Config().flat())


def _by_owner(config: Config) -> Iterator[str]:
    """Accuracies by gate, test and domain, in the words of results.json."""
    data = config.data
    names = [*data.domains[: data.num_clients]]
    names += ["other"] if len(data.domains) > data.num_clients else []
    for gate in gates_of(config) if names else ():
        if not (gate.endswith("+prior") or "." in gate):
            yield from (f"by_owner.{gate}.iid.{name}" for name in names if "." not in name)


def _stages(config: Config) -> list[str]:
    if config.run.system == "aligned":
        return ["extractor", "alignment", "alignment-test", "whole", "placed"]
    if config.run.system == "language" or config.run.system in BASELINES:
        from nmoe_flower.pipeline import exchanges  # with Flower and SciPy, for these alone

        return list(exchanges(config))
    gates = [f"gate/{method}" for method in config.gate.methods]
    before = ["extractor", "extractor-test", "sums", "head", "experts"]
    return [*before, *gates, "controls", "evaluation"]
