"""Gates that cannot be right: ahead of the oracle, or behind a gate that does not look.

No choice among experts beats the best choice, so what is ahead of the oracle was measured wrongly.
A gate that is behind RanGate, beyond the noise of three seeds or more, is worse than none: it has
learned what does not help, or its experts are so alike that a blend by chance beats any choice.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from nmoe_flower.catalogue import BASELINE_ANSWERS, GATES
from nmoe_flower.report import differences, estimate
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.rows import Row

__all__ = ["alarms"]

_FEWEST = 3  # seeds
_PRIOR = "+prior"


def alarms(rows: Sequence[Row], labels: Labels) -> list[str]:
    """What is wrong with the gates of a study, a sentence each; empty if nothing is.

    Args:
        rows: The study's, those that may be looked at; accuracies are read alone.
        labels: What the study calls things.
    """
    runs: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.metric == "accuracy" and row.gate:
            runs[row.folder, row.test][row.gate] = row
    return [told for gates in runs.values() for told in _of(gates, labels)]


def _of(gates: Mapping[str, Row], labels: Labels) -> Iterator[str]:
    """What is wrong in one test of one variant."""
    for name, row in gates.items():
        base = name.removesuffix(_PRIOR)
        if base.startswith("control:") or base in BASELINE_ANSWERS:
            continue
        if base in GATES and GATES[base].plain:  # RanGate itself, the own expert, the oracle
            continue
        corrected = _PRIOR if base != name else ""
        for rival, sign, words in (("oracle", 1, "ahead of the"), ("random", -1, "behind")):
            other = gates.get(rival + corrected)
            more = differences(row.numbers, other.numbers) if other else {}
            found = estimate([sign * one for one in more.values()]) if more else None
            beyond = found and found.mean > 0 and found.within_noise is False
            if other and found and found.n >= _FEWEST and beyond:
                ours, theirs = (labels.of_value("gate", one.gate) for one in (row, other))
                where = [labels.of_value("variant", row.variant)]
                where += [labels.of_value(axis, at, alone=True) for axis, at in row.values.items()]
                where.append(labels.of_value("test", row.test))
                means = (estimate([*one.numbers.values()]).mean for one in (row, other))
                numbers = " to ".join(f"{mean:.3f}" for mean in means)
                yield (
                    f"{ours} is {words} {theirs} beyond the noise: {numbers} "
                    f"({', '.join(filter(None, where))})."
                )
