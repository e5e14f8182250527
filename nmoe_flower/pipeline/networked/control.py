"""What the mixture is measured against: a classifier per client, and what pools all data."""

from flwr.app import ArrayRecord, ConfigRecord

from nmoe_flower import records
from nmoe_flower.catalogue import CONTROLS
from nmoe_flower.config import Config
from nmoe_flower.pipeline.ask import gather, holdings, message
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import CENTRALIZED, CONFIG, POOLED_HEAD, Action, ControlKey

__all__ = ["train_controls"]

_CENTRAL = (CENTRALIZED, POOLED_HEAD)  # one client trains them, on everybody's data


def train_controls(run: Run) -> None:
    """What the mixture is measured against: a classifier per client, and what pools all data."""
    wanted = [name for name in run.config.run.controls if CONTROLS[name].trained]
    if not wanted:
        return
    fewest = min(holding.examples for holding in holdings(run).values())
    steps = _control_steps(run.config, fewest)
    central = min(run.partitions.values())
    questions = {}
    for partition in run.partitions.values():
        named = [name for name in wanted if name not in _CENTRAL or partition == central]
        questions[partition] = message(
            run.artifacts.classifier if POOLED_HEAD in named else None,
            {ControlKey.CONTROLS: named, ControlKey.STEPS: steps},
        )
    asked = [
        p
        for p, content in questions.items()
        if records.of_kind(content, ConfigRecord)[CONFIG][ControlKey.CONTROLS]
    ]
    answers = gather(run, "controls", Action.CONTROL, questions, only=asked)
    if CENTRALIZED in wanted:
        mixed = records.of_kind(answers[central], ArrayRecord)[CENTRALIZED]
        run.artifacts.centralized = records.to_numpy(mixed)
    if POOLED_HEAD in wanted:
        pooled = records.of_kind(answers[central], ArrayRecord)[POOLED_HEAD]
        run.artifacts.pooled_head = records.to_numpy(pooled)


def _control_steps(config: Config, size: int) -> int:
    """As many steps as stage 1 took, or ``control-epochs`` passes over a client's images."""
    extractor = config.extractor
    per_epoch = max(1, size // extractor.batch_size)
    if config.run.control_epochs:
        return config.run.control_epochs * per_epoch
    per_round = extractor.local_steps or extractor.local_epochs * per_epoch
    return extractor.rounds * per_round
