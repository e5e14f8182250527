"""Stage 1: the shared extractor."""

from flwr.app import ArrayRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.pipeline.arrays import has, keep
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import ARRAYS, Action
from nmoe_flower.schedules import schedule
from nmoe_flower.strategies import FedCE

__all__ = ["train_extractor"]


def train_extractor(run: Run) -> None:
    """Stage 1: FedCE. Leaves the classifier under ``classifier/`` and the fresh gate."""
    settings, seed_node = run.config.extractor, min(run.partitions.values())
    initial = ArrayRecord()  # of no use to a resumed stage, which has arrays of its own
    if not has(run, "gate/initial"):
        fresh = run.gather("initial", Action.INITIAL, RecordDict(), only=[seed_node])[seed_node]
        keep(run, "gate/initial", fresh.array_records["gate"])
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
    keep(run, "classifier", trained)
