"""Between stages 1 and 2: a head for an extractor that was trained without labels."""

from nmoe_flower import records
from nmoe_flower.pipeline.ask import gather, message
from nmoe_flower.pipeline.rounds import federate
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import Action
from nmoe_flower.schedules import schedule
from nmoe_flower.strategies import AdamW, SteppedFedAvg

__all__ = ["train_head"]

LOCAL_RATE = 1.0  # of the clients' one step; the server divides by it and lets AdamW step


def train_head(run: Run) -> None:
    """Complete the classifier with a head: FedAvg on frozen latents, one step per round.

    One step per client and round makes the mean change the gradient of everybody's batch, so skew
    costs nothing. Experts that start there (``expert.init``) know all classes; experts that start
    from scratch know those of their client.
    """
    settings = run.config.head
    if not settings.rounds:
        return
    gather(run, "latents", Action.LATENTS, message(run.artifacts.classifier))
    strategy = SteppedFedAvg(
        action=Action.HEAD,
        min_available_nodes=run.config.data.num_clients,
        server_optimizer=AdamW(weight_decay=settings.weight_decay),
        learning_rate=schedule("cosine", peak=settings.learning_rate, steps=settings.rounds),
        local_learning_rate=LOCAL_RATE,
    )
    initial = records.from_numpy(run.artifacts.initial_head)
    head = records.to_numpy(federate(run, "head", strategy, initial, rounds=settings.rounds))
    run.artifacts.classifier |= {f"head.{name}": value for name, value in head.items()}
