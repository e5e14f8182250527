"""The summary in words: what was run, where a plain baseline wins, what is within the noise."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmoe_flower.catalogue import ADAPTER_CONTROLS, BASELINE_ANSWERS, BASELINES, POLICIES
from nmoe_flower.config import Config
from nmoe_flower.plurals import how_many, one_or_many
from nmoe_flower.report.alignment import is_alignment
from nmoe_flower.report.estimates import Estimate, differences, estimate
from nmoe_flower.report.html.parts import MINUS, Fact, Said
from nmoe_flower.report.runs import FinishedRun
from nmoe_flower.report.tables import (
    GATE_NAMES,
    gate_kind,
    is_of_text,
    method_label,
    shown_tests,
    test_label,
)

__all__ = [
    "Groups",
    "data_set",
    "facts",
    "gate_name",
    "plain_gates",
    "shares_in_words",
    "summary",
    "test_in_sentence",
    "time_in_words",
    "what_was_run",
]

Groups = Mapping[str, Sequence[FinishedRun]]

# Gates that need no training at all, and controls that are one model each.
_BASELINES = {
    "local": "every client's own expert alone",
    "random": "an expert drawn at random",
    "control:fedavg": "one averaged model",
    "control:local-classifier": "a classifier of every client's own",
}
# Those of text: no gate chooses there.
_BESIDE_TEXT = {
    **{f"control:{name}": one.label for name, one in ADAPTER_CONTROLS.items()},
    "control:frozen": "the language model as it is",
}
# What stands beside published systems; called like this by pages, too, but for FedAvg.
_BESIDE_SYSTEMS = {
    "fedavg": "one averaged model",
    **{name: BASELINE_ANSWERS[name] for name in ("majority", "own", "fine-tuned", "uniform")},
}


def plain_gates(*, of_text: bool = False) -> tuple[str, ...]:
    """What counts as a plain baseline of the networked system, without prior correction.

    Args:
        of_text: Whether those of the system ``language`` are asked for, with its own controls.
    """
    return tuple(_BESIDE_TEXT | _BASELINES if of_text else _BASELINES)


def gate_name(gate: str) -> str:
    """How pages call a gate or control.

    >>> gate_name("control:fedavg+prior"), gate_name("federated+prior")
    ('FedAvg + prior', 'federated + prior')
    """
    base, plus, _ = gate.partition("+prior")
    return GATE_NAMES.get(base, base) + (" + prior" if plus else "")


def test_in_sentence(test: str) -> str:
    """How a sentence calls a test.

    >>> test_in_sentence("local"), test_in_sentence("iid"), test_in_sentence("validation")
    ('local test', 'IID test', 'validation')
    """
    label = test_label(test)
    return label if label[:2].isupper() else label[0].lower() + label[1:]


def _tests(groups: Groups) -> list[str]:
    """What is told of in words, in order."""
    return shown_tests(row["test"] for of in groups.values() for row in of[0].results["rows"])


def data_set(config: Config) -> str:
    """The name of the data, without the folder it lies in."""
    return Path(config.data.dataset).name or config.data.dataset


# --- what was run ---


def what_was_run(groups: Groups) -> str:
    """One sentence: how many runs of what, on which data, with which seeds."""
    runs = [run for of in groups.values() for run in of]
    data = _listed(dict.fromkeys(data_set(run.config) for run in runs))
    shares = _listed(dict.fromkeys(shares_in_words(run.config) for run in runs))
    clients = _listed(dict.fromkeys(str(run.config.data.num_clients) for run in runs))
    seeds = sorted({run.config.run.seed for run in runs})
    seconds = [run.results.get("seconds") for run in runs]
    known = [float(value) for value in seconds if value is not None]
    count = f"{len(runs)} runs of {len(groups)} configurations" if len(runs) > 1 else "One run"
    if len(runs) > 1 and len(groups) == 1:
        count = f"{len(runs)} runs of one configuration"
    took = f" It took {time_in_words(sum(known))}." if known else ""
    if len(runs) > 1 and known:
        took = f" They took {time_in_words(sum(known))} in all."
    return (
        f"{count}: {'; '.join(_systems(runs))}; on {data} shared out among {clients} "
        f"{'client' if clients == '1' else 'clients'} ({shares}); "
        f"{one_or_many(len(seeds), 'seed')} "
        f"{_listed(map(str, seeds))}.{took}"
    )


def _systems(runs: Sequence[FinishedRun]) -> list[str]:
    """What was trained, each once."""
    networked = dict.fromkeys(
        f"{method_label(run.config.extractor.method)} and one expert per client, "
        f"top-{run.config.gate.top_k}"
        for run in runs
        if run.config.run.system != "aligned" and run.config.run.system not in BASELINES
    )
    aligned = [run.config.alignment for run in runs if run.config.run.system == "aligned"]
    policies = dict.fromkeys(one.policy for one in aligned if one.experts != 1)
    found = list(networked)
    found += dict.fromkeys(
        BASELINES[run.config.run.system].label for run in runs if run.config.run.system in BASELINES
    )
    if policies:
        word = "policies" if len(policies) > 1 else "policy"
        found.append(f"experts aligned with clients by the {word} {_listed(policies)}")
    if any(one.experts == 1 for one in aligned):
        found.append("a single model trained by the same clients")
    return found


def shares_in_words(config: Config) -> str:
    """How the data are shared out among the clients."""
    data = config.data
    if data.scheme == "dominant":
        return f"dominant classes, τ = {data.tau:g}"
    if data.scheme == "dirichlet":
        return f"Dirichlet, alpha = {data.alpha:g}"
    if data.scheme == "pathological":
        return f"{how_many(data.classes_per_client, 'class', 'classes')} each"
    return {"iid": "IID", "natural": "as it comes"}.get(data.scheme, data.scheme)


def _listed(names: Iterable[str]) -> str:
    """Names as a sentence has them.

    >>> _listed(["a", "b", "c"]), _listed(["a"])
    ('a, b and c', 'a')
    """
    *first, last = list(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def time_in_words(seconds: float) -> str:
    """A duration in words.

    >>> time_in_words(52.3), time_in_words(2926), time_in_words(8000)
    ('52 s', '49 min', '2 h 13 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# --- who wins ---

_UNITS = {"accuracy": "", "bits_per_byte": " bits per byte"}


@dataclass(frozen=True)
class _Entry:
    """One gate of one configuration in one test."""

    configuration: str
    gate: str
    plain: str
    metric: str
    rows: Mapping[int, Mapping[str, Any]]

    @property
    def numbers(self) -> dict[int, float]:
        return {seed: row[self.metric] for seed, row in self.rows.items()}

    @property
    def mean(self) -> float:
        return statistics.fmean(self.numbers.values())

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return 1 if self.metric == "accuracy" else -1


def _entries(groups: Groups, test: str) -> list[_Entry]:
    """What can be deployed, of every configuration; upper bounds and pooled data are left out."""
    found = []
    for name, runs in groups.items():
        of_text = any(map(is_of_text, runs[0].results["rows"]))
        metric = "bits_per_byte" if of_text else "accuracy"
        rows: dict[str, dict[int, Mapping[str, Any]]] = {}
        for run in runs:
            for row in run.results["rows"]:
                if row["test"] == test and row.get(metric) is not None:
                    rows.setdefault(row["gate"], {})[run.config.run.seed] = row
        aligned = is_alignment(runs[0])
        if aligned and POLICIES[runs[0].config.alignment.policy].truth:
            continue
        published = runs[0].config.run.system in BASELINES
        beside = _BESIDE_SYSTEMS if published else _BESIDE_TEXT if of_text else {}
        baselines = beside | _BASELINES
        for gate, of in rows.items():
            base = gate.removesuffix("+prior")
            plain = baselines.get(base, "")
            if aligned:
                plain = _plain_policy(runs[0].config)
            elif gate_kind(gate) == "upper bound" or (gate_kind(gate) == "control" and not plain):
                continue
            found.append(_Entry(name, gate, plain, metric, of))
    return found


def _best(entries: Sequence[_Entry], *, plain: bool) -> _Entry | None:
    """The best of the plain baselines, or of all else."""
    those = [one for one in entries if bool(one.plain) == plain]
    return max(those, key=lambda one: one.sign * one.mean, default=None)


def _plain_policy(config: Config) -> str:
    """What kind of plain baseline a run of the alignment system is; empty for none."""
    if config.alignment.experts == 1:
        return "a single model"
    return "an assignment drawn at random" if config.alignment.policy == "random" else ""


@dataclass(frozen=True)
class _Difference:
    """How much more the first has, what is known of the noise, and what it is taken over."""

    found: Estimate
    over: str

    def __str__(self) -> str:
        mean = f"{self.found.mean:+.3f}".replace("-", MINUS)
        ends = self.found.interval
        if ends is None:
            return f"{mean} {self.over}"
        return f"{mean} ± {(ends[1] - ends[0]) / 2:.3f} {self.over}"


def _difference(first: _Entry, second: _Entry) -> _Difference:
    """Paired by seed; with one seed by client; otherwise nothing is known of the noise."""
    more = differences(first.numbers, second.numbers)
    if len(more) > 1:
        return _Difference(estimate(list(more.values())), f"over {len(more)} seeds")
    for seed in more:
        clients = [_per_client(entry, seed) for entry in (first, second)]
        if len(clients[0]) == len(clients[1]) > 1:
            each = estimate([a - b for a, b in zip(*clients, strict=True)])
            return _Difference(each, f"over the {each.n} clients of one seed")
    means = estimate([first.mean - second.mean])
    return _Difference(means, "with no estimate of the noise")


def _per_client(entry: _Entry, seed: int) -> list[float]:
    values = (entry.rows[seed].get("per_client") or {}).get(entry.metric) or []
    return [float(v) for v in values] if all(v is not None for v in values) else []


def _verdicts(groups: Groups) -> list[tuple[int, Said]]:
    """A paragraph per test with its weight: 0 a baseline wins, 1 noise, 2 a gate wins."""
    found = []
    for test in _tests(groups):
        entries = _entries(groups, test)
        learned, plain = _best(entries, plain=False), _best(entries, plain=True)
        where = f"the {test_in_sentence(test)}"
        if learned is None or plain is None:
            one = learned or plain
            if one is not None:
                reached = f"{one.mean:.3f}{_UNITS[one.metric]}"
                found.append((2, Said(f"Best on {where}: {_called(one, groups)}, {reached}.")))
            continue
        more = _difference(learned, plain)
        noun = _noun(groups[learned.configuration][0])
        gate, baseline = _called(learned, groups), _called(plain, groups)
        if not baseline.startswith(plain.plain):
            baseline += f" ({plain.plain})"
        numbers = (
            f"The best {noun}, {gate}, reaches {learned.mean:.3f}{_UNITS[learned.metric]}, "
            f"the best plain baseline, {baseline}, {plain.mean:.3f}: {more}."
        )
        if more.found.within_noise:
            first, weight = f"On {where} no {noun} beats a plain baseline beyond the noise.", 1
        elif learned.sign * more.found.mean < 0:
            first, weight = f"On {where} a plain baseline wins.", 0
        else:
            first, weight = f"On {where} the best {noun} beats a plain baseline.", 2
        if more.found.within_noise is None:
            what = "one number of each" if more.found.n == 1 else "numbers that all say the same"
            first = first.removesuffix(".") + f", as far as {what} can tell."
        found.append((weight, Said(numbers, first)))
    return sorted(found, key=lambda pair: pair[0])


def _noun(run: FinishedRun) -> str:
    """What competes with plain baselines there."""
    if is_alignment(run):
        return "assignment"
    return "system" if run.config.run.system in BASELINES else "gate"


def _called(entry: _Entry, groups: Groups) -> str:
    if is_alignment(groups[entry.configuration][0]):
        which = {"mixture": "its whole mixture", "placed": "what it places on each client"}
        return f"{entry.configuration}, {which.get(entry.gate, entry.gate)}"
    of = f" of {entry.configuration}" if len(groups) > 1 else ""
    return f"{gate_name(entry.gate)}{of}"


def summary(groups: Groups, paper: Sequence[Mapping[str, Any]]) -> list[Said]:
    """The words at the head of a page, what matters most first.

    Args:
        groups: Runs by the name of their configuration.
        paper: What `paper_table` gives for the runs.
    """
    told = [said for _, said in _verdicts(groups)]
    if told and any("±" in said.text for said in told):
        told.append(Said(
            "± after a difference is its 95 % interval. A difference within it is noise, and no "
            "evidence for either."
        ))  # fmt: skip
    beside = _paper(paper)
    first = Said(what_was_run(groups))
    return [first, *told, *([beside] if beside else []), *_findings(groups)]


def _paper(paper: Sequence[Mapping[str, Any]]) -> Said | None:
    """How many cells are at or above the paper's."""
    cells = [
        (row[metric], row[f"paper_{metric}"])
        for row in paper
        for metric in ("accuracy", "macro_f1", "auc")
        if row[metric] is not None
    ]
    if not cells:
        return None
    enough = sum(ours >= theirs for ours, theirs in cells)
    if len(cells) == 1:
        where = "at or above" if enough else "below"
        return Said(f"The one number that the paper prints, too, is {where} the paper's.")
    return Said(
        f"Of {how_many(len(cells), 'number')} that the paper prints, too, "
        f"{enough} {one_or_many(enough, 'is', 'are')} at or above the paper's and "
        f"{len(cells) - enough} below."
        if enough < len(cells)
        else f"All {len(cells)} numbers that the paper prints, too, are at or above the paper's."
    )


def _findings(groups: Groups) -> list[Said]:
    """Collapsed features, answers without a row, and dropped replies."""
    found = []
    for name, runs in groups.items():
        of = f"{name}: " if len(groups) > 1 else ""
        for run in runs:
            collapse = (run.results.get("representation") or {}).get("collapse")
            if collapse:
                text = f"{of}the features collapsed (seed {run.config.run.seed}): {collapse}"
                found.append(Said("", text, "warning"))
            for who, why in (run.results.get("diverged") or {}).items():
                text = f"{of}{who} has no row (seed {run.config.run.seed}): {why}"
                found.append(Said("", text, "warning"))
        dropped = sum(len(r.get("failures") or ()) for run in runs for r in run.rounds)
        if dropped:
            found.append(Said(f"{of}{dropped} replies of clients could not be used."))
    return found


# --- numbers at the head ---


def facts(groups: Groups) -> list[Fact]:
    """A few numbers: the best gate and the best baseline of each test, and what an answer costs."""
    found = []
    for test in _tests(groups)[:2]:
        entries = _entries(groups, test)
        for plain in (False, True):
            if (best := _best(entries, plain=plain)) is None:
                continue
            run = groups[best.configuration][0]
            kind = "" if is_alignment(run) else f" {_noun(run)}"
            title = "best plain baseline" if plain else f"best{kind}"
            number = f"{best.mean:.3f}{_UNITS[best.metric]}"
            fact = Fact(f"{test_label(test)}, {title}", number, _called(best, groups))
            found.append(fact)
    return found
