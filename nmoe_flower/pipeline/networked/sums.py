"""Between stages 1 and 2: all that sums over the clients' latents give, in one exchange."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError, DataError, ReplyError, RoundError
from nmoe_flower.pipeline.accounts import account
from nmoe_flower.pipeline.ask import Holding, alike, gather, holdings, message
from nmoe_flower.pipeline.networked.gate import GateTrainer
from nmoe_flower.pipeline.run import Run
from nmoe_flower.privacy import (
    check_release,
    noise_in_scatter,
    noise_multiplier_for,
    packed_dim,
    sensitivity,
    smat,
    sums_of_release,
)
from nmoe_flower.records import NUM_EXAMPLES, STANDARD_PART, SUMS, Action, LinearKey, SumsKey
from nmoe_flower.sums import Discriminants, Solution, Sums, from_moments, solve

__all__ = [
    "LDA",
    "gather_sums",
    "leave_sums",
    "solve_head",
    "solved_from_sums",
    "standardise_latents",
    "sums_told",
]

Told = Mapping[int, dict[str, np.ndarray]]


def solve_head(run: Run) -> None:
    """Leave standardisation, ridge head and the gate ``lda``: the stage head without a round."""
    leave_sums(run, gather_sums(run))


def leave_sums(run: Run, told: Told) -> None:
    """Leave what follows from the sums of each client, by partition id in order.

    Raises:
        RoundError: All latents are the same.
    """
    _keep(run, solved_from_sums(run, told, run.config.head.components))
    run.artifacts.classifier |= {
        f"head.{name}": array for name, array in run.artifacts.ridge.items()
    }


def standardise_latents(run: Run) -> None:
    """Leave the standardisation alone, and the ridge head where the rounds begin with it."""
    if run.config.head.asks_sums:
        _keep(run, solved_from_sums(run, gather_sums(run), run.config.head.components))
        return
    told = gather_sums(run, moments=True)
    _keep_standard(run, from_moments(told.values()).arrays())


def _keep(run: Run, solution: Solution) -> None:
    _keep_standard(run, solution.standard.arrays())
    run.artifacts.ridge = {
        "layers.0.weight": solution.head.weight.astype(np.float32),
        "layers.0.bias": solution.head.bias.astype(np.float32),
    }
    run.artifacts.discriminants = _gate(solution.gate)


def _keep_standard(run: Run, arrays: Mapping[str, np.ndarray]) -> None:
    run.artifacts.classifier |= {f"{STANDARD_PART}{n}": value for n, value in arrays.items()}


def _gate(gate: Discriminants) -> dict[str, np.ndarray]:
    return {
        LinearKey.WEIGHT: gate.weight.astype(np.float32),
        LinearKey.BIAS: gate.bias.astype(np.float32),
    }


def solved_from_sums(run: Run, told: Told, components: int) -> Solution:
    """Keep each client's sums in the run folder, account for them, and solve.

    Args:
        run: The run in progress.
        told: Each client's sums, as `gather_sums` returns them.
        components: Principal components to keep; 0: every number of a latent.

    Raises:
        RoundError: All latents are the same.
    """
    for client, arrays in told.items():
        run.keep(f"sums/{client}", arrays)
    if run.config.privacy.enabled:
        counts = {client: int(arrays[SumsKey.COUNT]) for client, arrays in told.items()}
        of_text = run.config.run.system == "language"
        account(run, "states" if of_text else "sums", counts)
    head, classes = run.config.head, len(next(iter(holdings(run).values())).classes)
    try:
        return solve(
            (sums_told(arrays, classes) for arrays in told.values()),  # a scatter is large
            components=components,
            shrinkage=head.ridge,
            sharpness=head.sharpness,
            noise=_noise(run.config, told, classes) if run.config.privacy.enabled else 0.0,
        )
    except DataError as error:
        raise RoundError(f"sums: {error}") from None


def sums_told(arrays: Mapping[str, np.ndarray], num_classes: int) -> Sums:
    """The sums that a client told, as they are or with noise.

    Raises:
        DataError: They contradict themselves.
        ConfigError: The length of a noisy matrix fits none.
    """
    if SumsKey.PRIVATE not in arrays:
        return Sums.read(arrays)
    return sums_of_release(arrays[SumsKey.PRIVATE], int(arrays[SumsKey.COUNT]), num_classes)


def _noise(config: Config, told: Told, num_classes: int) -> float:
    """Largest eigenvalue of the noise in the scatter of all clients together."""
    counts = [int(arrays[SumsKey.COUNT]) for arrays in told.values()]
    noise = _noise_multiplier(config)
    stds = [noise * sensitivity(1.0, count) for count in counts]
    dim = packed_dim(next(iter(told.values()))[SumsKey.PRIVATE].size) - num_classes
    return noise_in_scatter(stds, counts, dim)


def _noise_multiplier(config: Config) -> float:
    """Every client makes one release of its sums, and perhaps one of a histogram of tokens."""
    privacy = config.privacy
    return noise_multiplier_for(privacy.epsilon, privacy.delta, privacy.single_releases)


def gather_sums(
    run: Run, *, moments: bool = False, finished: bool = False, only: list[int] | None = None
) -> Told:
    """Ask every client, or those of partitions ``only``, for the sums over its latents.

    Args:
        run: The run in progress, with its extractor.
        moments: Only count, mean and squares are wanted.
        finished: They are to be of latents as experts see them, standardised, and for the gate
            ``lda`` alone.
        only: Partitions to ask; None: all.

    Raises:
        RoundError: A client's sums are not of its latents, or unlike those of most.
    """
    held = holdings(run)
    extractor = {
        name: array
        for name, array in run.artifacts.classifier.items()
        if name.startswith("extractor.") and (finished or not name.startswith(STANDARD_PART))
    }
    content = message(extractor, {SumsKey.MOMENTS: True} if moments else None)
    answers = gather(
        run,
        "gate/lda" if finished else "sums",
        Action.SUMS,
        content,
        only=only,
        wanted=[SUMS],
        check=partial(_check, run.config, held, moments),
    )
    told = {
        p: records.to_numpy(records.of_kind(content, ArrayRecord)[SUMS])
        for p, content in answers.items()
    }
    return alike("sums", told)


def _check(config: Config, held: Mapping[int, Holding], moments: bool, content: RecordDict) -> None:
    """Refuse sums that contradict themselves, or the number of images behind them.

    Raises:
        ReplyError: With what is wrong.
    """
    arrays = records.to_numpy(records.of_kind(content, ArrayRecord)[SUMS])
    examples = int(records.metrics_of(content)[NUM_EXAMPLES])
    try:
        if moments:
            from_moments([arrays])
            count = int(arrays[SumsKey.COUNT])
        elif config.privacy.enabled:
            count = _count(arrays)
        else:
            count = Sums.read(arrays).count
    except (ConfigError, DataError) as error:
        raise ReplyError(str(error)) from None
    if count != examples:
        raise ReplyError(f"the sums are of {count} latents, and the client has {examples} samples")
    if config.privacy.enabled:
        _check_release(config, held, arrays)


def _count(arrays: Mapping[str, np.ndarray]) -> int:
    """The samples behind a release.

    Raises:
        DataError: An array is missing.
    """
    for name in (SumsKey.COUNT, SumsKey.PRIVATE):
        if name not in arrays:
            raise DataError(f"the array {name.value!r} is missing")
    return int(arrays[SumsKey.COUNT])


def _check_release(
    config: Config, held: Mapping[int, Holding], arrays: Mapping[str, np.ndarray]
) -> None:
    """Refuse a matrix that no latents and labels have, noise allowed for.

    Raises:
        ReplyError: The matrix cannot be.
    """
    noise_std = _noise_multiplier(config) * sensitivity(1.0, int(arrays[SumsKey.COUNT]))
    try:
        sums_told(arrays, len(next(iter(held.values())).classes))
        matrix = smat(arrays[SumsKey.PRIVATE].astype(np.float64))
    except (ConfigError, DataError) as error:
        raise ReplyError(str(error)) from None
    check_release(matrix, dim=len(matrix), noise_std=noise_std)


def _discriminants(run: Run) -> ArrayRecord:
    """The gate's weights: those of the stage head, or of an exchange of its own."""
    if not run.artifacts.discriminants:
        finished = run.config.sums_come_first
        solution = solved_from_sums(run, gather_sums(run, finished=finished), 0)
        gate = solution.gate
        if finished or not run.config.head.standardises:  # no latent will be: the gate must do it
            gate = gate.before(solution.standard)
        run.artifacts.discriminants = _gate(gate)
    return records.from_numpy(run.artifacts.discriminants)


def _exchanges(config: Config) -> int:
    """Sums that came before adapters were trained are of other latents."""
    return 0 if config.head.asks_sums and not config.sums_come_first else 1


LDA = GateTrainer(_discriminants, _exchanges, initial=False)
