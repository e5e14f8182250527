"""The stages of the pipeline, in order; each a function of the run, callable alone."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.config import Config
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ARRAYS, CONFIG, EXPERT, NUM_EXAMPLES, SERVER_ROUND, Action
from nmoe_flower.schedules import schedule
from nmoe_flower.strategies import FedCE, FedGate, RollGate, StreamingFedAvg

__all__ = ["STAGES", "train_controls", "train_experts", "train_extractor", "train_gates"]

SPLITS = ("holdout", "local", "iid")


def train_extractor(run: Run) -> None:
    """Stage 1: FedCE. Leaves the classifier under ``classifier/`` and the fresh gate."""
    settings, seed_node = run.config.extractor, min(run.partitions.values())
    initial = ArrayRecord()  # of no use to a resumed stage, which has arrays of its own
    if not _has(run, "gate/initial"):
        fresh = run.gather("initial", Action.INITIAL, RecordDict(), only=[seed_node])[seed_node]
        _keep(run, "gate/initial", fresh.array_records["gate"])
        initial = fresh.array_records[ARRAYS]
    strategy = FedCE(
        action=Action.EXTRACTOR,
        evaluate_action=Action.EXTRACTOR_TEST,
        fraction_train=settings.fraction_train,
        min_available_nodes=run.config.data.num_clients,
        server_learning_rate=settings.server_learning_rate,
        server_momentum=settings.momentum if settings.momentum_at == "server" else 0.0,
        learning_rate=schedule(
            settings.schedule,
            peak=settings.learning_rate,
            steps=settings.rounds,
            warmup=settings.warmup,
        ),
        ema=settings.ema,
    )

    def averaged(arrays: ArrayRecord) -> ArrayRecord:
        return records.from_numpy(strategy.ema_arrays) if strategy.ema_arrays else arrays

    trained = averaged(
        run.federate(
            "extractor",
            strategy,
            initial,
            rounds=settings.rounds,
            test_every=run.config.run.evaluate_every or max(1, settings.rounds // 10),
            tested=averaged,
        )
    )
    _keep(run, "classifier", trained)


def train_experts(run: Run) -> None:
    """Stage 2: personal experts, and what leaves of them for stage 3."""
    classifier = _kept(run, "classifier")
    prototypes, sharing = "prototype" in run.config.gate.methods, run.config.expert.sharing
    wanted = ["prototype"] if prototypes else []
    wanted += {"weights": [EXPERT], "latents": ["latents"], "none": []}[sharing]
    trained = run.gather("experts", Action.EXPERT, _message(classifier), wanted=wanted)
    if prototypes:
        means = [
            records.to_numpy(content.array_records["prototype"])["mean"]
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
        run.gather("answers", Action.ANSWERS, RecordDict({EXPERT: experts}))
    elif sharing == "latents":
        _exchange_latents(run, trained)


def _exchange_latents(run: Run, trained: Mapping[int, RecordDict]) -> None:
    """Experts stay at home: latents visit every expert, logits [N, E, C] come back."""
    latents = {
        partition: records.to_numpy(content.array_records["latents"])
        for partition, content in trained.items()
    }
    rows = [(partition, split) for partition in latents for split in SPLITS]
    everyone = np.concatenate([latents[partition][split] for partition, split in rows])
    message = RecordDict({"latents": records.from_numpy({"latents": everyone})})
    answered = run.gather("answer", Action.ANSWER, message, wanted=["answers"])
    logits = np.stack(
        [records.to_numpy(c.array_records["answers"])["logits"] for c in answered.values()], axis=1
    )
    ends = np.cumsum([len(latents[partition][split]) for partition, split in rows])[:-1]
    split_logits = dict(zip(rows, np.split(logits, ends), strict=True))
    run.gather(
        "answers",
        Action.ANSWERS,
        {
            partition: RecordDict(
                {"answers": records.from_numpy({s: split_logits[partition, s] for s in SPLITS})}
            )
            for partition in latents
        },
    )


def train_gates(run: Run) -> None:
    """Stage 3: every configured gate that has weights to train."""
    trainers: dict[str, Callable[[Run], ArrayRecord]] = {
        "federated": _federated_gate,
        "rolling": _rolling_gate,
        "global": _global_gate,
    }
    for method in run.config.gate.methods:
        if method in trainers and not _has(run, f"gate/{method}"):
            _keep(run, f"gate/{method}", trainers[method](run))
            run.save(f"gate/{method}/done")


def _federated_gate(run: Run) -> ArrayRecord:
    gate = run.config.gate
    return run.federate(
        "gate/federated",
        FedGate(action=Action.GATE, fraction_train=gate.fraction_train, min_train_nodes=1),
        _kept(run, "gate/initial"),
        rounds=gate.rounds,
        settings=_gate_rate(run.config, gate.rounds),
    )


def _rolling_gate(run: Run) -> ArrayRecord:
    gate = run.config.gate
    strategy: StreamingFedAvg
    if gate.rolling == "cyclic":
        strategy = RollGate(action=Action.ROLLING)
        rounds = gate.cycles * run.config.data.num_clients
    else:
        strategy = FedGate(action=Action.ROLLING, fraction_train=gate.fraction_train)
        rounds = gate.rounds
    return run.federate(
        "gate/rolling",
        strategy,
        _kept(run, "gate/initial"),
        rounds=rounds,
        settings=_gate_rate(run.config, rounds),
    )


def _global_gate(run: Run) -> ArrayRecord:
    """The upper bound: one client trains on everybody's hold-out. Only for simulations."""
    pooled = run.gather("gate/global", Action.POOL, RecordDict(), wanted=["pooled"])
    parts = [records.to_numpy(content.array_records["pooled"]) for content in pooled.values()]
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    message = _message(
        _kept(run, "gate/initial"),
        {SERVER_ROUND: 1, "learning-rate": run.config.gate.learning_rate},
    )
    message["pooled"] = records.from_numpy(together)
    node = min(pooled)
    trained = run.gather("gate/global", Action.POOLED, message, only=[node])
    return trained[node].array_records[ARRAYS]


def _gate_rate(config: Config, rounds: int) -> Callable[[int], Mapping[str, Any]]:
    rate = schedule("cosine", peak=config.gate.learning_rate, steps=rounds)
    return lambda current: {"learning-rate": rate(current)}


def train_controls(run: Run) -> None:
    """What the mixture is measured against: one classifier per client, one central mixture."""
    wanted = [name for name in run.config.run.controls if name != "fedavg"]
    if not wanted:
        return
    steps = _control_steps(run.config, min(_train_sizes(run)))
    central = min(run.partitions.values())
    questions = {
        partition: _message(
            None,
            {
                "controls": [n for n in wanted if n != "centralized" or partition == central],
                "steps": steps,
            },
        )
        for partition in run.partitions.values()
    }
    asked = [p for p, content in questions.items() if content.config_records[CONFIG]["controls"]]
    answers = run.gather("controls", Action.CONTROL, questions, only=asked)
    if "centralized" in wanted:
        _keep(run, "centralized", answers[central].array_records["centralized"])


def _train_sizes(run: Run) -> list[int]:
    answers = run.gather("describe", Action.DESCRIBE, RecordDict())
    return [int(records.metrics_of(content)[NUM_EXAMPLES]) for content in answers.values()]


def _control_steps(config: Config, size: int) -> int:
    """As many steps as stage 1 took, or ``control-epochs`` passes over a client's images."""
    extractor = config.extractor
    per_epoch = max(1, size // extractor.batch_size)
    if config.run.control_epochs:
        return config.run.control_epochs * per_epoch
    per_round = extractor.local_steps or extractor.local_epochs * per_epoch
    return extractor.rounds * per_round


STAGES: dict[str, Callable[[Run], None]] = {
    "extractor": train_extractor,
    "experts": train_experts,
    "gates": train_gates,
    "controls": train_controls,
}


def _message(arrays: ArrayRecord | None, config: Mapping[str, Any] | None = None) -> RecordDict:
    content = RecordDict()
    if arrays is not None:
        content[ARRAYS] = arrays
    if config:
        content[CONFIG] = ConfigRecord(dict(config))
    return content


def _keep(run: Run, name: str, arrays: ArrayRecord) -> None:
    run.arrays |= {f"{name}/{key}": value for key, value in records.to_numpy(arrays).items()}


def _kept(run: Run, name: str) -> ArrayRecord:
    return records.from_numpy(run.part(f"{name}/"))


def _has(run: Run, name: str) -> bool:
    return any(key.startswith(f"{name}/") for key in run.arrays)
