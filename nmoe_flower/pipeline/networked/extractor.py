"""Stage 1: the shared extractor, by FedCE or FedSC, or a given one."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.catalogue import METHODS, found
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, ReplyError
from nmoe_flower.files import load_arrays
from nmoe_flower.pipeline.ask import gather, holdings, message
from nmoe_flower.pipeline.networked.adapters import begin_adapters
from nmoe_flower.pipeline.networked.gate import trainer_of
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.run import Run
from nmoe_flower.privacy import Accountant, Budget, noise_multiplier_for, refresh_interval
from nmoe_flower.records import ARRAYS, GATE, HEAD, Action
from nmoe_flower.schedules import schedule
from nmoe_flower.strategies import AdamW, FedCE, FedSC, SteppedFedAvg, SteppedOptions

__all__ = [
    "ask_initial",
    "asks_initial",
    "fedce",
    "fedsc",
    "given_weights",
    "hand_out_extractor",
    "stage_1_strategy",
    "train_extractor",
]

LOCAL_RATE_UNDER_ADAMW = 0.1  # cancels in one-step rounds; large enough for float32 differences
LAST_SHARE = 0.2  # of FedSC's schedule, which starts at 1 (Jing et al. 2024)


def train_extractor(run: Run) -> None:
    """Leave the extractor (FedCE: with its head), and fresh gate and head for later stages."""
    held = holdings(run)  # clients that cannot train together are refused before they do
    settings = run.config.extractor
    initial = ArrayRecord()  # of no use to a resumed stage, which has arrays of its own
    if not run.artifacts.initial_gate and asks_initial(run.config):
        initial = ask_initial(run)
    if settings.is_given:
        told = next(iter(held.values())).extractor
        run.artifacts.classifier = {
            "extractor.hash": np.frombuffer(bytes.fromhex(told), np.uint8).copy()
        }
        return
    if settings.start:
        folder = Path(settings.start).expanduser()
        run.artifacts.classifier = given_weights(folder, records.to_numpy(initial))
        return
    if settings.is_adapted:
        initial = begin_adapters(run, initial)
    strategy = stage_1_strategy(run.config)

    def averaged(arrays: ArrayRecord) -> ArrayRecord:
        return records.from_numpy(strategy.ema_arrays) if strategy.ema_arrays else arrays

    trained = averaged(
        federate(
            run,
            "extractor",
            strategy,
            initial,
            rounds=settings.rounds,
            test_every=run.config.run.evaluate_every or max(1, settings.rounds // 10),
            tested=averaged,
        )
    )
    run.artifacts.classifier |= {
        name: array
        for name, array in records.to_numpy(trained).items()
        if not name.startswith("projector.")
    }
    if run.config.sums_come_first:  # what sums gave is of the latents before
        run.artifacts.ridge, run.artifacts.discriminants = {}, {}
    _keep_findings(run, strategy)


def hand_out_extractor(run: Run, action: Action) -> None:
    """Give the extractor to all clients, who keep it.

    Args:
        run: The run, after stage 1.
        action: What a client does to keep it.
    """
    gather(run, "extractor/given", action, message(run.artifacts.part("extractor.")))


def asks_initial(config: Config) -> bool:
    """Whether anything begins at weights that a client hands out: stage 1, a head, or a gate."""
    trainers = filter(None, map(trainer_of, config.gate.methods))
    trained = any(trainer.initial for trainer in trainers)
    return not config.extractor.is_given or bool(config.head.rounds) or trained


def ask_initial(run: Run) -> ArrayRecord:
    """Ask a client for fresh weights: leave those of gate and head, return those of stage 1."""
    node = min(run.partitions.values())
    fresh = gather(run, "initial", Action.INITIAL, RecordDict(), only=[node])[node]
    run.artifacts.initial_gate = records.to_numpy(records.of_kind(fresh, ArrayRecord)[GATE])
    run.artifacts.initial_head = records.to_numpy(records.of_kind(fresh, ArrayRecord)[HEAD])
    return records.of_kind(fresh, ArrayRecord)[ARRAYS]


def stage_1_strategy(config: Config) -> SteppedFedAvg:
    """The server half that ``extractor.method`` names.

    Raises:
        ConfigError: Settings of the strategy contradict each other or are out of range.
    """
    strategy: SteppedFedAvg = found(METHODS[config.extractor.method].strategy)(config)
    return strategy


def fedce(config: Config) -> SteppedFedAvg:
    """FedCE as ``extractor`` says."""
    return FedCE(**_options(config, Action.FEDCE, Action.FEDCE_TEST))


def fedsc(config: Config) -> SteppedFedAvg:
    """FedSC as ``extractor``, ``contrast`` and ``privacy`` say."""
    contrast, privacy, rounds = config.contrast, config.privacy, config.extractor.rounds
    options = _options(config, Action.FEDSC, Action.FEDSC_TEST)
    first = contrast.first or _first_matrix(config)
    refresh, noise, accountant = contrast.refresh or 1, 0.0, None
    if privacy.enabled:
        refresh = contrast.refresh or refresh_interval(max(1, rounds - first + 1), privacy.releases)
        noise = noise_multiplier_for(privacy.epsilon, privacy.delta, privacy.releases)
        accountant = Accountant(Budget(privacy.epsilon, privacy.delta))
    return FedSC(
        exchange=contrast.exchange,
        share=_share(contrast.share, rounds),
        first=first,
        refresh=refresh,
        dim=contrast.dim,
        noise_multiplier=noise,
        accountant=accountant,
        shrink=privacy.enabled and privacy.shrink,
        **options,
    )


def _first_matrix(config: Config) -> int:
    """The round of the first matrix: if it takes a pass, that of features worth its price.

    With DP-SGD nobody learns before there is a mean matrix, so there it is the first.
    """
    if config.privacy.weights or not config.makes_passes:
        return 1
    return int(config.extractor.warmup * config.extractor.rounds) + 1


def _options(config: Config, action: Action, evaluate_action: Action) -> SteppedOptions:
    """What both strategies take from ``extractor``."""
    settings = config.extractor
    adamw = AdamW(weight_decay=settings.weight_decay) if settings.steps_with_adamw else None
    local = settings.local_learning_rate or (LOCAL_RATE_UNDER_ADAMW if adamw else None)
    return {
        "action": action,
        "evaluate_action": evaluate_action,
        "fraction_train": settings.fraction_train,
        "min_available_nodes": config.data.num_clients,
        "server_learning_rate": settings.server_learning_rate,
        "server_momentum": settings.momentum if settings.momentum_at == "server" else 0.0,
        "server_optimizer": adamw,
        "learning_rate": schedule(
            settings.schedule,
            peak=settings.learning_rate,
            steps=settings.rounds,
            warmup=settings.warmup,
        ),
        "local_learning_rate": local,
        "ema": settings.ema,
    }


def _share(kind: str, rounds: int) -> Callable[[int], float] | None:
    """How much of a client's loss is its own matrix; None for its share of the samples."""
    if kind == "samples":
        return None
    if kind == "own":
        return lambda _: 1.0
    return lambda current: 1.0 - (1.0 - LAST_SHARE) * (current - 1) / max(1, rounds - 1)


def given_weights(folder: Path, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The extractor (and head) of a finished run, of those names in ``like`` that are theirs.

    Args:
        folder: The finished run's.
        like: Arrays of the configured network, for their names and shapes.

    Raises:
        ConfigError: There is none, or it is not that of the configured network.
    """
    given: dict[str, np.ndarray] = {}
    for part in ("extractor", "head"):
        path = folder / "weights" / f"{part}.safetensors"
        if path.is_file():
            given |= {f"{part}.{name}": value for name, value in load_arrays(path).items()}
    wanted = {
        name: value for name, value in like.items() if name.startswith(("extractor.", "head."))
    }
    kept = {name: value for name, value in given.items() if name in wanted}
    try:
        records.require_finite(kept)
        kept = records.restored(kept, wanted)
    except ReplyError as error:
        raise ConfigError(f"extractor.start = {folder}: {error}") from None
    return kept


def _keep_findings(run: Run, strategy: SteppedFedAvg) -> None:
    """The spectrum of the features and what privacy was spent, for ``results.json``."""
    accountant = None
    if isinstance(strategy, FedSC):
        eigenvalues = strategy.correlations.eigenvalues()
        if eigenvalues is not None:
            run.artifacts.spectrum = eigenvalues
        accountant = strategy.accountant
    if run.config.privacy.weights:
        accountant = accountant or Accountant()
        accountant.weights = dict(strategy.private_steps.costs)
        accountant.exposed = tuple(_exposed(run.config))
    if accountant is not None:
        run.artifacts.accountant = accountant.state()


def _exposed(config: Config) -> Iterator[str]:
    """What leaves a client in stage 1 without noise, though its weights are private."""
    if config.extractor.method != "fedsc":
        return
    if not config.privacy.enabled:
        yield "correlation matrices (set privacy.enabled)"
    if config.contrast.probe != "none":
        yield "accuracies of probes of its training images (set contrast.probe = none)"
