"""Training of the second system: its first weights, its assigner, its rounds.

Chen et al. 2025, arXiv:2507.05685, section III.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.alignment import (
    Assigner,
    Capacity,
    Clock,
    ClosedFormGate,
    DeficitQueue,
    ExpertCost,
    Fitness,
    Usage,
    World,
    draw_devices,
    read_trace,
)
from nmoe_flower.catalogue import ALIGNMENT_GATES, found
from nmoe_flower.config import Config
from nmoe_flower.pipeline.ask import gather, holdings, train_counts
from nmoe_flower.pipeline.networked import hand_out_extractor
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ARRAYS, Action, AlignmentKey
from nmoe_flower.strategies import (
    AdamW,
    AveragedGate,
    ExpertAlignment,
    GateSharing,
    StatisticsGate,
    TravellingGate,
    UnsharedGate,
)

__all__ = [
    "averaged_gate",
    "solved_gate",
    "train_alignment",
    "trained_assigner",
    "travelling_gate",
    "unshared_gate",
]

STAGE = "alignment"
QUANTITIES = ("compute", "memory", "download", "upload", "latency")
_TRAINING_COPIES = 4  # weights, gradients, momentum, activations


def train_alignment(run: Run) -> None:
    """Rounds of ExpertAlignment. Leaves the mixture, and what the server has learned."""
    counts = train_counts(holdings(run))
    if run.config.has_stage_1:
        hand_out_extractor(run, Action.GIVEN)
    initial = ArrayRecord()
    if not run.artifacts.expert_parameters:
        node = min(run.partitions.values())
        fresh = gather(run, "initial", Action.MIXTURE, RecordDict(), only=[node])[node]
        initial = records.of_kind(fresh, ArrayRecord)[ARRAYS]
        size = records.metrics_of(fresh)[AlignmentKey.EXPERT_PARAMETERS]
        run.artifacts.expert_parameters = int(size)
    strategy = _strategy(run, counts)
    trained = federate(
        run,
        STAGE,
        strategy,
        initial,
        rounds=run.config.alignment.rounds,
        test_every=run.config.alignment.evaluate_every,
        also=lambda: {"audit": strategy.audit},  # who got what, and why
    )
    run.artifacts.mixture = records.to_numpy(trained)
    run.artifacts.alignment = dict(strategy.state())


def _strategy(run: Run, counts: npt.NDArray[np.int64]) -> ExpertAlignment:
    config, settings = run.config, run.config.alignment
    parameters = run.artifacts.expert_parameters
    flops = _flops(parameters)
    world = _world(config)
    return ExpertAlignment(
        _assigner(config, counts, parameters, flops, world),
        gate=_gate(config),
        world=world,
        clock=Clock(settings.deadline or np.inf),
        flops=flops,
        action=Action.ALIGNMENT,
        evaluate_action=Action.ALIGNMENT_TEST,
        fraction_train=settings.fraction_train,
        min_available_nodes=max(2, config.run.min_replies),  # clients may leave and come back
    )


def _flops(parameters: int) -> float:
    """FLOPs of training one sample with one expert: one product forward, two back, 2 FLOPs each."""
    return 6.0 * parameters


def _world(config: Config) -> World | None:
    settings, clients = config.alignment, config.data.num_clients
    if settings.trace:
        return read_trace(Path(settings.trace).expanduser(), clients, seed=config.run.seed)
    if settings.devices:
        drawn = draw_devices(settings.devices, clients, seed=config.run.seed)
        return World(drawn, seed=config.run.seed)
    return None


def averaged_gate(config: Config) -> GateSharing:
    """A gate that all clients train, averaged as it is or stepped by the server."""
    rate = config.alignment.gate_server_rate
    return AveragedGate(AdamW() if rate else None, rate=rate)


def unshared_gate(_: Config) -> GateSharing:
    """A gate for each client, which never leaves it."""
    return UnsharedGate()


def travelling_gate(_: Config) -> GateSharing:
    """A gate whose rows travel with their experts."""
    return TravellingGate()


def solved_gate(config: Config) -> GateSharing:
    """A gate in closed form, from the statistics of all clients."""
    settings = config.alignment
    experts = settings.experts or config.data.num_clients
    return StatisticsGate(
        ClosedFormGate(experts, decay=settings.gate_decay, ridge=settings.gate_ridge)
    )


def _gate(config: Config) -> GateSharing:
    sharing: GateSharing = found(ALIGNMENT_GATES[config.alignment.gate].sharing)(config)
    return sharing


def _assigner(
    config: Config, counts: np.ndarray, parameters: int, flops: float, world: World | None
) -> Assigner:
    settings, clients = config.alignment, config.data.num_clients
    experts = settings.experts or clients
    samples = settings.local_steps * settings.batch_size
    capacity: Capacity | tuple[int, ...] = settings.capacity
    if settings.estimate_capacity and world is not None:
        size = 4.0 * parameters
        cost = ExpertCost(size=size, memory=_TRAINING_COPIES * size, flops=flops)
        deadline, most = settings.deadline or np.inf, max(settings.capacity)
        capacity = Capacity(clients, cost, deadline=deadline, most=min(most, experts))
        reported = {q: [getattr(d, q) for d in world.at(1)] for q in QUANTITIES}
        capacity.report(np.arange(clients), **reported)
    return Assigner(
        clients,
        experts,
        policy=settings.policy,
        capacity=capacity,
        fitness=Fitness(
            clients,
            experts,
            rate=settings.rate,
            decay=settings.decay,
            prior=settings.prior,
            centred=settings.centred,
            exploration=settings.exploration,
        ),
        usage=Usage(experts, decay=settings.usage_decay),
        deficits=DeficitQueue(experts),
        truth=_truth(counts, experts),
        lo=None if settings.lo < 0 else settings.lo,
        hi=None if settings.hi < 0 else settings.hi,
        loss_weight=settings.loss_weight,
        weights=(settings.fitness_weight, settings.usage_weight, settings.deficit_weight),
        scale=settings.scale,
        samples=samples,
        seed=config.run.seed,
    )


def rehearse_alignment(config: Config, counts: npt.NDArray[np.int64], parameters: int) -> None:
    """Assign once, with nothing learned yet: what cannot be assigned now never could.

    Args:
        config: Configuration of the run.
        counts: Training images per client and class, [clients, C].
        parameters: Number of parameters of one expert.

    Raises:
        ConfigError: Capacities and bounds leave no assignment.
    """
    assigner = _assigner(config, counts, parameters, _flops(parameters), _world(config))
    assigner.assign(1, np.ones(config.data.num_clients, bool))
    _gate(config)


def trained_assigner(run: Run, counts: np.ndarray) -> Assigner:
    """What the server knew at the end of training; ``counts`` are class counts per client."""
    parameters = run.artifacts.expert_parameters
    assigner = _assigner(run.config, counts, parameters, _flops(parameters), _world(run.config))
    assigner.load_state(records.part_of(run.artifacts.alignment, "assigner/"))
    return assigner


def _truth(counts: np.ndarray, experts: int) -> np.ndarray:
    """The oracle's affinities: expert e is meant for the classes c with c mod E = e."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.stack([shares[:, e::experts].sum(axis=1) for e in range(experts)], axis=1)
