"""Before stage 1 of a given backbone with adapters: where these and their head begin."""

from flwr.app import ArrayRecord

from nmoe_flower import records
from nmoe_flower.pipeline.ask import gather, message
from nmoe_flower.pipeline.networked.head import first_head
from nmoe_flower.pipeline.networked.sums import standardise_latents
from nmoe_flower.pipeline.run import Run
from nmoe_flower.records import STANDARD_PART, Action

__all__ = ["begin_adapters"]


def begin_adapters(run: Run, initial: ArrayRecord) -> ArrayRecord:
    """Leave the classifier before the first round; give of it what travels in the rounds.

    With ``head.standardise`` sums over the latents of the backbone as it was given make these
    alike, and the head begins as ``head.start`` says. Standardisation stays as it is then, so it
    travels once; and the hash of the backbone stays at home.

    Args:
        run: The run in progress.
        initial: Fresh weights that a client handed out; of a resumed run none are needed.
    """
    if not run.artifacts.classifier:
        run.artifacts.classifier = records.to_numpy(initial)
        if run.config.sums_come_first:
            standardise_latents(run)
        if run.config.head.start != "fresh":
            run.artifacts.classifier |= {
                f"head.{name}": array for name, array in first_head(run).items()
            }
        if run.config.sums_come_first:
            run.save("extractor/standard")
    classifier = run.artifacts.classifier
    standard = {name: array for name, array in classifier.items() if name.startswith(STANDARD_PART)}
    if standard:  # told again if the run is resumed: a device may have lost its disk
        gather(run, "standard", Action.STANDARD, message(standard))
    learned = {name: array for name, array in classifier.items() if records.is_learned(name)}
    return records.from_numpy(learned)
