"""What a study has found: its rows, and the tables, comparisons, choice and figures made of them.

`findings_of` reads run folders; `read_findings` reads a ``table.json``, which holds the same.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nmoe_flower.begun import RUNS
from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.commands import command_line
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import lines_of_json, read_json
from nmoe_flower.plurals import how_many, one_or_many
from nmoe_flower.recipes import typed_name
from nmoe_flower.report import is_papers_setting, paper_cell, read_rounds
from nmoe_flower.study.alarms import alarms
from nmoe_flower.study.comparisons import Comparison, compare
from nmoe_flower.study.curves import (
    Curve,
    RoutingMap,
    curves_from_json,
    curves_of,
    curves_to_json,
    routing_from_json,
    routing_of,
    routing_to_json,
)
from nmoe_flower.study.declared import FigureSpec, TableSpec
from nmoe_flower.study.figures import Figure, fill_figure
from nmoe_flower.study.file import Study
from nmoe_flower.study.labels import Labels
from nmoe_flower.study.measured import gates_of, measured_by, tests_of
from nmoe_flower.study.outcomes import outcomes_of
from nmoe_flower.study.policies import policies_from_json, policies_table, policies_to_json
from nmoe_flower.study.product import StudyRun
from nmoe_flower.study.rows import (
    Quantity,
    Row,
    RunOutcome,
    rows_from_json,
    rows_of,
    rows_to_json,
)
from nmoe_flower.study.sweep import (
    Choice,
    SweepTable,
    choose,
    hide_the_others,
    is_chosen,
    may_be_told,
    sweep_table,
)
from nmoe_flower.study.tables import FAILED, NOTHING, StudyTable, absent_in_words, fill_table

__all__ = [
    "Findings",
    "Places",
    "findings_from",
    "findings_of",
    "findings_to_json",
    "quantities",
    "read_findings",
]

TABLE_VERSION = 3
_SCORE, _SCORE_OF_TEXT = "accuracy", "bits_per_byte"
_UNDRAWN = "of what was not chosen no test is drawn"
_UNTOLD = "-: not measured, or the test of a value that was not chosen."


@dataclass(frozen=True)
class Places:
    """Where findings were read from, as it was typed.

    Attributes:
        runs: The folder that holds the study's folder.
        finished: Folders of runs that finished elsewhere.
        published: ``runs`` holds published runs, to which none are added by running.
    """

    runs: Path
    finished: tuple[Path, ...] = ()
    published: bool = False


@dataclass(frozen=True)
class Findings:
    """All that is reported of a study.

    Attributes:
        study: The study.
        rows: Every number that it asks for, in the order of its variants.
        curves: How runs went, if a figure shows it.
        routing: Who asked whom, if a figure shows it.
        policies: Tables of the second system's policies, by name.
        outcomes: The runs it was read from; empty if it was read from a ``table.json``.
        provenance: Where the numbers come from: ``machine``, ``versions``, ``revisions`` and
            ``dates``, each a list of all there are; ``minutes`` in all, a shared stage once;
            ``runs`` that were asked for and ``finished`` ones.
        places: Where they were read from; None if that is a ``table.json``.
    """

    study: Study
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...] = ()
    routing: tuple[RoutingMap, ...] = ()
    policies: Mapping[str, StudyTable] = field(default_factory=dict)
    outcomes: tuple[RunOutcome, ...] = field(default=(), repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    places: Places | None = field(default=None, repr=False, compare=False)

    @cached_property
    def labels(self) -> Labels:
        """What its things are called."""
        study = self.study
        return Labels(
            {one.name: one.label for one in study.variants.values()},
            {axis.name: axis.values for axis in study.axes.values()},
            study.labels,
        )

    @cached_property
    def choices(self) -> list[Choice]:
        """What its sweep has chosen; empty without one."""
        return choose(self.study.sweep, self.rows) if self.study.sweep else []

    @cached_property
    def shown(self) -> list[Row]:
        """The rows that may be looked at: of a sweep no test but those of its choice."""
        sweep = self.study.sweep
        return hide_the_others(sweep, self.rows, self.choices) if sweep else list(self.rows)

    @cached_property
    def shown_curves(self) -> list[Curve]:
        """The curves that may be looked at, likewise."""
        sweep, choices = self.study.sweep, self.choices
        return [one for one in self.curves if sweep is None or may_be_told(sweep, one, choices)]

    @cached_property
    def shown_routing(self) -> list[RoutingMap]:
        """Who asked whom, as far as it may be looked at, likewise."""
        sweep, choices = self.study.sweep, self.choices
        return [one for one in self.routing if sweep is None or may_be_told(sweep, one, choices)]

    def tells_tests_of(self, run: StudyRun) -> bool:
        """Whether the tests of a run may be looked at."""
        sweep = self.study.sweep
        if sweep is None:
            return True
        return sweep.tests != () and is_chosen(sweep, run, self.choices)

    @cached_property
    def tables(self) -> list[StudyTable]:
        """The tables; one of all gates if it declares none."""
        filled = [
            self.policies[spec.name]
            if spec.kind == "policies"
            else fill_table(spec, self.shown, self.labels)
            for spec in tables_of(self.study)
        ]
        if self.study.sweep is None:
            return filled
        return [
            replace(table, notes=(*(note for note in table.notes if note != NOTHING), _UNTOLD))
            for table in filled
        ]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The paired comparisons."""
        study, hidden = self.study, self.study.sweep is not None
        return [
            compare(spec, self.shown, self.labels, runs=study.runs, hidden=hidden)
            for spec in study.comparisons
        ]

    @cached_property
    def sweep(self) -> SweepTable | None:
        """What its sweep has tried and chosen; None without one."""
        if self.study.sweep is None:
            return None
        return sweep_table(self.study.sweep, self.choices, self.labels)

    @cached_property
    def figures(self) -> list[Figure]:
        """The figures."""
        told = [run for run in self.study.runs if self.tells_tests_of(run)]
        filled = [
            fill_figure(
                spec,
                self.shown,
                self.labels,
                curves=self.shown_curves,
                routing=self.shown_routing,
                runs=self.study.runs if spec.test == VALIDATION else told,
            )
            for spec in self.study.figures
        ]
        if self.study.sweep is None:
            return filled
        return [
            one if spec.test == VALIDATION else replace(one, notes=(*one.notes, _UNDRAWN))
            for spec, one in zip(self.study.figures, filled, strict=True)
        ]

    def beside(self, other: "Findings") -> "Findings":
        """With the curves and the routing of runs that only the other has any of."""
        curves = {(c.variant, *c.values.values(), c.seed) for c in self.curves}
        maps = {_of_map(one): len(one.seeds) for one in self.routing}
        more = [one for one in other.routing if len(one.seeds) > maps.get(_of_map(one), 0)]
        better = {_of_map(one) for one in more}
        return replace(
            self,
            curves=(
                *self.curves,
                *(c for c in other.curves if (c.variant, *c.values.values(), c.seed) not in curves),
            ),
            routing=(*(one for one in self.routing if _of_map(one) not in better), *more),
        )

    @cached_property
    def alarms(self) -> list[str]:
        """Which gates cannot be right, a sentence each: `nmoe_flower.study.alarms`."""
        return alarms(self.shown, self.labels)

    @property
    def absent(self) -> list[str]:
        """Which runs failed, and why, and which are missing; empty if all are there."""
        return list(absent_in_words(self.rows))

    @property
    def failed(self) -> list[str]:
        """Which runs failed, and why; empty if none has."""
        return [told for told in self.absent if told.startswith(FAILED)]

    @property
    def missing(self) -> tuple[str, str]:
        """How many runs are not there yet, and all of their names; empty if none is."""
        runs = {(row.folder, seed) for row in self.rows for seed in row.missing}
        if not runs:
            return "", ""
        asked, few = len(self.study.runs), one_or_many(len(runs), "is", "are")
        *_, named = absent_in_words(self.rows, most=len(runs))
        return f"{len(runs)} of {how_many(asked, 'run')} {few} not there yet.", named


def _of_map(one: RoutingMap) -> tuple[Any, ...]:
    return one.variant, *one.values.values(), one.gate, one.test


def findings_of(
    study: Study, runs: Path, finished: Sequence[Path] = (), *, stage_1: Path | None = None
) -> Findings:
    """Read what a study's runs have found.

    Args:
        study: The study.
        runs: The folder that holds the study's folder: that of runs, or of published ones.
        finished: Folders like it, of runs that finished elsewhere: of what is missing in ``runs``.
        stage_1: The folder of shared stages; None: ``stage-1`` below ``runs``.

    Raises:
        NMoEError: No run has finished; a folder holds a run of other settings, or a file of
            another shape.
    """
    outcomes = outcomes_of(study, runs, finished, stage_1=stage_1)
    found = findings_from(study, outcomes, runs / study.name)
    for root in (runs, *finished):
        kept = root / study.name / "table.json"
        if kept.is_file():  # published: of rounds and routing it has what the figures show
            found = found.beside(read_findings(study, kept))
    return replace(found, places=Places(runs, tuple(finished), _are_published(outcomes, runs)))


def _are_published(outcomes: Sequence[RunOutcome], runs: Path) -> bool:
    """Whether ``runs`` holds published ones: of the study, or of those that it tabulates."""
    inside = [one.path for one in outcomes if one.path and one.path.is_relative_to(runs)]
    return any((path.parents[1] / RUNS).is_file() for path in inside)


def findings_from(study: Study, outcomes: Sequence[RunOutcome], place: Path) -> Findings:
    """What a study has found, from what its runs have come to; ``place`` is for errors."""
    if all(one.results is None for one in outcomes):
        raise NMoEError(
            f"no run of {study.name} has finished in {place}: run it with "
            f"{command_line('nmoe', 'study', 'run', typed_name(study.path))}, or say with --runs "
            "where its runs are"
        )
    wanted = list(quantities(study))
    drawn = {spec.y for spec in study.figures if spec.kind == "rounds"}
    curves = [
        curve
        for one in outcomes
        if one.path is not None and one.results is not None and drawn
        for curve in curves_of(one, read_rounds(one.path / "rounds.jsonl"))
        if curve.metric in drawn
    ]
    gates = {gate for spec in study.figures if spec.kind == "routing"
             for gate in _gates(study, spec)}  # fmt: skip
    return Findings(
        study,
        tuple(rows_of(outcomes, wanted, paper=_paper(study, wanted))),
        tuple(curves),
        tuple(routing_of(outcomes, sorted(gates))),
        {
            spec.name: policies_table(spec, outcomes)
            for spec in study.tables
            if spec.kind == "policies"
        },
        tuple(outcomes),
        _provenance(outcomes),
    )


def tables_of(study: Study) -> Sequence[TableSpec]:
    """The tables that a study declares; one of all gates and tests if it declares none.

    That is of accuracies, and of bits per byte where the run is of a language model.
    """
    if study.tables:
        return study.tables
    rows = (*(["variant"] if len(study.variants) > 1 else []), *study.axes, "gate")
    of_text = {run.config.run.system == "language" for run in study.runs}
    metrics = tuple(_SCORE_OF_TEXT if one else _SCORE for one in sorted(of_text))
    columns = ("test", *(["metric"] if len(metrics) > 1 else []))
    spec = TableSpec(name="results", title=study.title, rows=rows, columns=columns, metrics=metrics)
    return [spec.model_copy(update={"gates": _all_gates(study), "tests": _all_tests(study)})]


def quantities(study: Study) -> Iterator[Quantity]:
    """Every number that a study's tables, comparisons, sweep and figures ask of its runs."""
    named = [number for table in tables_of(study) for number in table.numbers]
    named += [number for comparison in study.comparisons for number in comparison.numbers]
    for number in named:
        yield from _quantities(number.metric, [number.gate], [number.test])
    for table in tables_of(study):
        for metric in table.metrics if table.kind == "cells" and not table.numbers else ():
            yield from _quantities(metric, table.gates, table.tests)
    for comparison in study.comparisons:
        for metric in comparison.metrics if not comparison.numbers else ():
            yield from _quantities(metric, comparison.gates, comparison.tests)
    if study.sweep is not None:
        yield from _quantities(study.sweep.metric, study.sweep.gates, _all_tests(study))
    for figure in study.figures:
        if figure.kind != "rounds":
            tests = [figure.test] if figure.test else figure.where.get("test", _all_tests(study))
            yield from _quantities(figure.y, _gates(study, figure), tests)


def _quantities(metric: str, gates: Iterable[str], tests: Iterable[str]) -> Iterator[Quantity]:
    kinds = measured_by(metric)
    tests = list(tests) if "test" in kinds else [""]
    for gate in gates if "gate" in kinds else [""]:
        yield from (Quantity(gate, test, metric) for test in tests)


def _gates(study: Study, figure: FigureSpec) -> Sequence[str]:
    return [figure.gate] if figure.gate else figure.where.get("gate", _all_gates(study))


def _all_gates(study: Study) -> tuple[str, ...]:
    return tuple(dict.fromkeys(gate for run in study.runs for gate in gates_of(run.config)))


def _all_tests(study: Study) -> tuple[str, ...]:
    return tuple(dict.fromkeys(test for run in study.runs for test in tests_of(run.config)))


def _paper(study: Study, wanted: Sequence[Quantity]) -> dict[tuple[str, Quantity], float]:
    """Published values by variant and number: those of the file before those of the paper."""
    found: dict[tuple[str, Quantity], float] = {}
    runs = list({run.variant: run for run in study.runs}.values())
    beside = study.paper_tables
    for run in [run for run in runs if beside and is_papers_setting(run.config)]:
        data = run.config.data
        for number in wanted:
            cell = paper_cell(
                number.gate,
                extractor=run.config.extractor.method,
                scheme=data.scheme,
                tau=data.tau,
                test=number.test,
            )
            value = (cell or {}).get(number.metric)
            if isinstance(value, float):
                found[run.variant, number] = value
    for value_of in study.paper:
        for run in runs:
            for number in wanted:
                there = value_of.is_of(run, gate=number.gate, test=number.test)
                if there and number.metric in value_of.values:
                    found[run.variant, number] = value_of.values[number.metric]
    return found


def _provenance(outcomes: Sequence[RunOutcome]) -> dict[str, Any]:
    """Where the numbers come from, everything once, in the order of the runs."""
    finished = [one for one in outcomes if one.results is not None]
    machines, versions, revisions, dates = [], [], [], []
    for one in finished:
        machine, git = (one.provenance.get(key) or {} for key in ("machine", "git"))
        if machine:
            machines.append(f"{machine.get('cores')} cores of {machine.get('cpu')}")
        told = one.provenance.get("versions") or {}
        versions.append({name: told[name] for name in ("torch", "flwr", "nmoe-flower")
                         if name in told})  # fmt: skip
        if git.get("revision"):
            revisions.append(str(git["revision"])[:7] + (" (changed)" if git.get("dirty") else ""))
        dates.append(str(one.provenance.get("started", ""))[:10])
    return {
        "machine": list(dict.fromkeys(machines)),
        "versions": [dict(one) for one in dict.fromkeys(tuple(v.items()) for v in versions)],
        "revisions": list(dict.fromkeys(revisions)),
        "dates": sorted({date for date in dates if date}),
        "minutes": round(_seconds(finished) / 60, 1),
        "runs": len(outcomes),
        "finished": len(finished),
    }


def _seconds(finished: Sequence[RunOutcome]) -> float:
    """What runs took, all together: the stages that several stand on were made once."""
    total, made = 0.0, set[tuple[str, float]]()
    for one in finished:
        results = one.results or {}
        total += float(results.get("seconds") or 0.0)
        if "stage-1" in one.provenance:
            stages = results.get("stages") or {}
            costs = {(name, float(cost["seconds"])) for name, cost in stages.items()}
            total -= sum(seconds for _, seconds in costs & made)
            made |= costs
    return total


def findings_to_json(findings: Findings) -> str:
    """The text of ``table.json``: one row a line, so that changes can be read.

    Of a sweep, tests of what was not chosen are left out. In pandas it is
    ``DataFrame(found["rows"], columns=found["columns"])``.
    """
    study = findings.study
    content: dict[str, Any] = {
        "format-version": TABLE_VERSION,
        "study": study.name,
        "title": study.title,
        "seeds": list(study.seeds),
        "provenance": dict(findings.provenance),
        **rows_to_json(findings.shown),
        "curves": curves_to_json(findings.shown_curves),
        "routing": routing_to_json(findings.shown_routing),
        "policies": [policies_to_json(table) for table in findings.policies.values()],
    }
    return lines_of_json(
        {key: value for key, value in content.items() if value != [] or key in ("columns", "rows")}
    )


def read_findings(study: Study, path: Path) -> Findings:
    """What a study has found, from its ``table.json``.

    Raises:
        NMoEError: The file is missing, of another study or another version, or edited by hand.
    """
    content = read_json(path, raises=NMoEError)
    if not isinstance(content, dict) or content.get("format-version") != TABLE_VERSION:
        raise NMoEError(
            f"{path} is no table of a study of format version {TABLE_VERSION}: "
            "`nmoe study report` writes it anew"
        )
    if content.get("study") != study.name:
        raise NMoEError(f"{path} is of the study {content.get('study')!r}, not {study.name!r}")
    try:
        return Findings(
            study,
            tuple(rows_from_json(content, str(path))),
            tuple(curves_from_json(content.get("curves", []))),
            tuple(routing_from_json(content.get("routing", []))),
            {one["name"]: policies_from_json(one) for one in content.get("policies", [])},
            provenance=dict(content["provenance"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NMoEError(f"{path} cannot be read: {error!r}") from None
