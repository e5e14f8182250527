"""What the mixture is measured against: one classifier per client, one central mixture."""

from nmoe_flower import records
from nmoe_flower.catalogue import CONTROLS
from nmoe_flower.config import Config
from nmoe_flower.pipeline.ask import gather, holdings, message
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import CENTRALIZED, CONFIG, Action, ControlKey

__all__ = ["train_controls"]


def train_controls(run: Run) -> None:
    """What the mixture is measured against: one classifier per client, one central mixture."""
    wanted = [name for name in run.config.run.controls if CONTROLS[name].trained]
    if not wanted:
        return
    fewest = min(holding.examples for holding in holdings(run).values())
    steps = _control_steps(run.config, fewest)
    central = min(run.partitions.values())
    questions = {
        partition: message(
            None,
            {
                ControlKey.CONTROLS: [
                    n for n in wanted if n != CENTRALIZED or partition == central
                ],
                ControlKey.STEPS: steps,
            },
        )
        for partition in run.partitions.values()
    }
    asked = [
        p for p, content in questions.items() if content.config_records[CONFIG][ControlKey.CONTROLS]
    ]
    answers = gather(run, "controls", Action.CONTROL, questions, only=asked)
    if CENTRALIZED in wanted:
        mixed = answers[central].array_records[CENTRALIZED]
        run.artifacts.centralized = records.to_numpy(mixed)


def _control_steps(config: Config, size: int) -> int:
    """As many steps as stage 1 took, or ``control-epochs`` passes over a client's images."""
    extractor = config.extractor
    per_epoch = max(1, size // extractor.batch_size)
    if config.run.control_epochs:
        return config.run.control_epochs * per_epoch
    per_round = extractor.local_steps or extractor.local_epochs * per_epoch
    return extractor.rounds * per_round
