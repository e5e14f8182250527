"""What the systems of a study have a device hold, and what travels in one of their rounds."""

from nmoe_flower.baselines import system_cost
from nmoe_flower.catalogue import BASELINES
from nmoe_flower.study import Study

IMAGES, CLASSES = (3, 32, 32), 10  # CIFAR-10's, which both studies are of


def devices(study: Study) -> str:
    """A table, one row for each published system, of its first run: nothing is trained.

    A variant that costs what another of its system does has no row of its own.

    Args:
        study: The study, of CIFAR-10.
    """
    lines = [
        "| System | Numbers held | of them at home | kB down a round | kB up a round |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    first = {run.named: run for run in reversed(study.runs) if run.config.run.system in BASELINES}
    told = set()
    for name, variant in study.variants.items():
        if name not in first:
            continue
        config = first[name].config
        cost = system_cost(config, IMAGES, CLASSES)
        if (config.run.system, cost) in told:
            continue
        told.add((config.run.system, cost))
        down, up = (each[-1] / cost.clients / 1e3 for each in (cost.down, cost.up))
        held = f"{cost.sent + cost.at_home:,} | {cost.at_home:,}"
        lines.append(f"| {variant.label} | {held} | {down:,.1f} | {up:,.1f} |")
    return "\n".join(lines) + "\n"
