"""The second system: a mixture on the server whose experts are aligned with clients.

Chen et al. 2025, arXiv:2507.05685: train, place the most suitable experts on every client within
its capacity (section I), test the placed parts and the whole.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
from nmoe_flower.alignment.feedback import EXPERTS
from nmoe_flower.config import Config
from nmoe_flower.pipeline.arrays import has, keep, message
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ARRAYS, CONFIG, SERVER_ROUND, Action
from nmoe_flower.strategies import (
    AveragedGate,
    ExpertAlignment,
    ExpertNames,
    GateSharing,
    LocalGate,
    StatisticsGate,
    TravellingGate,
)

__all__ = ["evaluate_aligned", "train_aligned"]

STAGE = "alignment"
QUANTITIES = ("compute", "memory", "download", "upload", "latency")
SCORES = ("accuracy", "balanced-accuracy", "macro-f1")
_TRAINING_COPIES = 4  # weights, gradients, momentum, activations


def train_aligned(run: Run) -> None:
    """Rounds of ExpertAlignment. Leaves the mixture under ``mixture/``, and what was learned."""
    described = run.gather("describe", Action.DESCRIBE, RecordDict())
    initial = ArrayRecord()
    if not has(run, "parameters"):
        node = min(run.partitions.values())
        fresh = run.gather("initial", Action.MIXTURE, RecordDict(), only=[node])[node]
        initial = fresh.array_records[ARRAYS]
        size = records.metrics_of(fresh)["expert-parameters"]
        run.arrays["parameters/expert"] = np.array(size)
    strategy = _strategy(run, described)
    write, run.journal = run.journal, _audited(run, strategy)
    try:
        trained = run.federate(
            STAGE,
            strategy,
            initial,
            rounds=run.config.alignment.rounds,
            test_every=run.config.alignment.evaluate_every,
        )
    finally:
        run.journal = write
    keep(run, "mixture", trained)
    state = strategy.state()
    run.arrays |= {f"aligned/{name}": value for name, value in state.items()}


def _audited(run: Run, strategy: ExpertAlignment) -> Any:
    """A journal whose lines of rounds also say who got what and why."""
    write = run.journal

    def journal(record: Mapping[str, Any]) -> None:
        if record["stage"] == STAGE:
            record = {**record, "audit": strategy.audit}
        write(record)

    return journal


def _strategy(run: Run, described: Mapping[int, RecordDict]) -> ExpertAlignment:
    config, settings = run.config, run.config.alignment
    counts = np.array([records.metrics_of(c)["train-counts"] for c in described.values()])
    parameters = int(run.arrays["parameters/expert"])
    flops = _flops(parameters)
    world = _world(config)
    return ExpertAlignment(
        _assigner(config, counts, parameters, flops, world),
        gate=_gate(config),
        world=world,
        clock=Clock(settings.deadline or np.inf),
        flops=flops,
        action=Action.ALIGNED,
        evaluate_action=Action.ALIGNED_TEST,
        fraction_train=settings.fraction_train,
        min_available_nodes=config.data.num_clients,
    )


def _flops(parameters: int) -> float:
    """Of training one sample with one expert: one product forward, two back, 2 FLOPs each."""
    return 6.0 * parameters


def _world(config: Config) -> World | None:
    settings, clients = config.alignment, config.data.num_clients
    if settings.trace:
        return read_trace(Path(settings.trace), clients, seed=config.run.seed)
    if settings.devices:
        drawn = draw_devices(settings.devices, clients, seed=config.run.seed)
        return World(drawn, seed=config.run.seed)
    return None


def _gate(config: Config) -> GateSharing:
    settings = config.alignment
    if settings.gate == "closed-form":
        experts = settings.experts or config.data.num_clients
        solver = ClosedFormGate(experts, decay=settings.gate_decay, ridge=settings.gate_ridge)
        return StatisticsGate(solver)
    kinds = {"averaged": AveragedGate, "local": LocalGate, "travelling": TravellingGate}
    return kinds[settings.gate]()


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


def _truth(counts: np.ndarray, experts: int) -> np.ndarray:
    """The oracle's affinities: expert e is meant for the classes c with c mod E = e."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.stack([shares[:, e::experts].sum(axis=1) for e in range(experts)], axis=1)


# --- after training ---


def evaluate_aligned(run: Run) -> dict[str, Any]:
    """Place experts, test the placed parts and the whole: the content of ``results.json``."""
    described = run.gather("describe", Action.DESCRIBE, RecordDict())
    counts = np.array([records.metrics_of(c)["train-counts"] for c in described.values()])
    parameters = int(run.arrays["parameters/expert"])
    assigner = _assigner(run.config, counts, parameters, _flops(parameters), _world(run.config))
    assigner.load_state(run.part("aligned/assigner/"))
    mixture, placed = run.part("mixture/"), assigner.place()
    told = {"final": True, SERVER_ROUND: run.config.alignment.rounds}
    whole = run.gather("whole", Action.ALIGNED_TEST, message(records.from_numpy(mixture), told))
    names, everyone = ExpertNames.found_in(mixture), sorted(run.partitions.values())
    questions = {
        row: message(
            records.from_numpy(names.subset(mixture, np.flatnonzero(placed[row]))),
            {**told, EXPERTS: np.flatnonzero(placed[row]).tolist()},
        )
        for row in everyone
        if placed[row].any()
    }
    parts = run.gather("placed", Action.ALIGNED_TEST, questions, only=list(questions))
    rows, routing = _rows(run, {"mixture": whole, "placed": parts})
    return {
        "rows": rows,
        "routing": routing,
        "alignment": _summary(run, assigner, placed),
        "stages": run.costs,
        "partition": {
            "train": counts.tolist(),
            "test": [list(records.metrics_of(c)["test-counts"]) for c in described.values()],
            "classes": list(described[0].config_records[CONFIG]["classes"]),  # type: ignore[arg-type]
        },
        "fingerprint": str(described[0].config_records[CONFIG]["fingerprint"]),
        "seconds": sum(cost["seconds"] for cost in run.costs.values()),
    }


def _rows(
    run: Run, tested: Mapping[str, Mapping[int, RecordDict]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    config, rows, routing = run.config, [], {}
    for gate, answers in tested.items():
        values = [records.metrics_of(content) for content in answers.values()]
        for test in ("local", "iid"):
            per_client = {
                name.replace("-", "_"): [float(one[f"{name}-{test}"]) for one in values]
                for name in SCORES
            }
            row: dict[str, Any] = {
                "extractor": config.alignment.extractor,
                "gate": gate,
                "scheme": config.data.scheme,
                "tau": config.data.tau,
                "test": test,
                "seed": config.run.seed,
                "clients": config.data.num_clients,
                "top_k": config.alignment.top_k,
            }
            row |= {name: float(np.mean(of)) for name, of in per_client.items()}
            rows.append({**row, "per_client": per_client})
            if len(values) == config.data.num_clients:
                routing[f"{gate}/{test}"] = [list(one[f"routing-{test}"]) for one in values]
    return rows, routing


def _summary(run: Run, assigner: Assigner, placed: np.ndarray) -> dict[str, Any]:
    traffic = run.arrays["aligned/traffic"]
    return {
        "policy": assigner.policy,
        "rounds": run.config.alignment.rounds,
        "loads": assigner.usage.total.tolist(),
        "load_variation": assigner.load_variation,
        "assignments": assigner.times.tolist(),
        "fitness": assigner.fitness.values.tolist(),
        "placed": placed.astype(int).tolist(),
        "bytes_down": traffic[:, 0].tolist(),
        "bytes_up": traffic[:, 1].tolist(),
        "simulated_seconds": float(run.arrays["aligned/elapsed"]),
    }
