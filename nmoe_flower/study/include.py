"""Runs that a study takes from another: the same runs, in the same place, tabulated anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from nmoe_flower.errors import ConfigError
from nmoe_flower.study.product import Axis, StudyRun, Variant, in_words, same

__all__ = ["Part"]


@dataclass(frozen=True)
class Part:
    """Some of the runs of a study, with what they are made of.

    Attributes:
        variants: The variants, some of which may have no run.
        axes: The axes, which every run has a value on.
        runs: The runs.
    """

    variants: list[Variant]
    axes: list[Axis]
    runs: list[StudyRun]

    def joined(self, other: Self, seeds: Sequence[int]) -> "Part":
        """This part, of some seeds, and after it the other, all of it; as one.

        Only what runs stand on is taken over from this part's variants and axes.

        Raises:
            ConfigError: The two have other axes, give one name to two variants or two values, or
                nothing is left of this part.
        """
        taken = [run for run in self.runs if run.seed in seeds]
        if not taken:
            raise ConfigError(f"no run is taken: none has a seed of {in_words(*seeds)}")
        own = {axis.name: axis for axis in other.axes}
        if other.runs and own.keys() != {axis.name for axis in self.axes}:
            raise ConfigError(
                f"its axes are {in_words(*(axis.name for axis in self.axes))}, and here they are "
                f"{in_words(*own)}; allowed: the same"
            )
        variants = _variants(self.variants, other.variants, taken)
        axes = [_axis(axis, own.get(axis.name, Axis(axis.name, ())), taken) for axis in self.axes]
        return Part(variants, axes, [*taken, *other.runs])


def _variants(
    theirs: Sequence[Variant], ours: Sequence[Variant], taken: Sequence[StudyRun]
) -> list[Variant]:
    """The variants of the runs that are taken, then our own."""
    used = {run.named for run in taken}
    kept = {variant.name: variant for variant in theirs if variant.name in used}
    for variant in ours:
        if kept.setdefault(variant.name, variant) != variant:
            raise ConfigError(
                f"{variant.name} is a variant there and here, with other settings: rename it here"
            )
    labels = [variant.label for variant in kept.values()]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"the label {label!r} stands for a variant there and another here")
    return list(kept.values())


def _axis(theirs: Axis, ours: Axis, taken: Sequence[StudyRun]) -> Axis:
    """An axis with its values of the runs that are taken, then our own."""
    choices = [
        (value, sets)
        for value, sets in theirs.choices
        if any(same(run.values[theirs.name], value) for run in taken)
    ]
    for value, sets in ours.choices:
        twins = [settings for one, settings in choices if same(one, value)]
        if twins and twins[0] != sets:
            raise ConfigError(f"{theirs.name} = {in_words(value)} sets other keys there than here")
        if not twins:
            choices.append((value, sets))
    return Axis(theirs.name, tuple(choices))
