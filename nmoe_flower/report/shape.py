"""What the files of a finished run must hold for its report, checked before anything is drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nmoe_flower.begun import is_run, read_origin, read_settings
from nmoe_flower.config import Config
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import parse_json, read_json
from nmoe_flower.report.by_stage import is_of_a_stage, rounds_in_turn
from nmoe_flower.results import COST

__all__ = ["BY_SETTINGS", "read_provenance", "read_results", "read_rounds", "said_once"]

_MOST = 1 << 30  # bytes; thousands of clients fill megabytes with their own values
_SHOWN = 3
_EVERY_ROW, _COLUMNS = "every-row", "columns"
BY_SETTINGS = {
    "scheme": "data.scheme",
    "tau": "data.tau",
    "seed": "run.seed",
    "clients": "data.num-clients",
    "top_k": "gate.top-k",
}
"""What a published run's rows do not say again where it is as the settings say."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Matrix = Annotated[list[Annotated[list[Number], Field(min_length=1)]], Field(min_length=1)]
Counts = Annotated[list[Annotated[list[Count], Field(min_length=1)]], Field(min_length=1)]


class _Part(BaseModel):
    """Other keys are let through: later versions write more."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _PerClient(_Part):
    accuracy: list[Number | None] | None = None


class _Row(_Part):
    extractor: Text
    gate: Text
    test: Text
    clients: Count
    top_k: Count
    accuracy: Number | None
    worst_client: Number | None = None
    balanced_accuracy: Number | None = None
    macro_f1: Number | None = None
    auc: Number | None = None
    local_ratio: Number | None = None
    bytes_per_sample: Number | None = None
    scheme: Text | None = None
    tau: Number | None = None
    per_client: _PerClient | None = None


class _Cost(_Part):
    seconds: Number | None = None
    bytes_up: Number | None = None
    bytes_down: Number | None = None


class _Partition(_Part):
    train: Counts
    test: Counts
    classes: Annotated[list[str | int], Field(min_length=1)]
    validation: Counts | None = None

    @model_validator(mode="after")
    def _one_column_per_class(self) -> Self:
        counts = (*self.train, *self.test, *(self.validation or ()))
        if {len(row) for row in counts} != {len(self.classes)}:
            raise ValueError(f"train and test need a count for each of {len(self.classes)} classes")
        return self


class _Alignment(_Part):
    assignments: Counts
    load_variation: Number
    simulated_seconds: Number
    bytes_down: Annotated[list[Count], Field(min_length=1)]
    bytes_up: Annotated[list[Count], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _rectangular("assignments", self.assignments)
        if len(self.bytes_down) != len(self.bytes_up):
            raise ValueError(
                f"bytes_down tells of {len(self.bytes_down)} clients, "
                f"bytes_up of {len(self.bytes_up)}"
            )
        return self


class _Representation(_Part):
    collapse: str | None = None
    effective_rank: Number | None = None
    dimensions: Number | None = None
    probe_accuracy: Number | None = None
    knn_accuracy: Number | None = None


class _Privacy(_Part):
    statement: str


class _Results(_Part):
    rows: Annotated[list[_Row], Field(min_length=1)]
    routing: dict[str, Matrix] | None = None
    stages: dict[str, _Cost] | None = None
    partition: _Partition | None = None
    alignment: _Alignment | None = None
    representation: _Representation | None = None
    privacy: _Privacy | None = None
    diverged: dict[str, str] | None = None
    seconds: Number | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, matrix in (self.routing or {}).items():
            _rectangular(f"routing {name!r}", matrix)
        cells = [(r.extractor, r.gate, r.test, r.clients, r.top_k) for r in self.rows]
        if len(set(cells)) < len(cells):
            twice = next(cell for cell in cells if cells.count(cell) > 1)
            raise ValueError(f"two rows for {twice}")
        return self


class _Provenance(_Part):
    git: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None


class _Failure(_Part):
    partition: int | str | None = None
    reason: str | None = None


class _Round(_Part):
    stage: Text
    round: Count
    metrics: dict[str, Any] | None = None
    failures: list[_Failure] | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0


def read_results(path: Path) -> dict[str, Any]:
    """The content of results.json, as far as a report needs it of the right shape.

    What it says once of all rows, as `said_once` left it, every row has, and of a published run
    what its settings say (`BY_SETTINGS`).

    Raises:
        NMoEError: It cannot be read, or a value is missing or of another kind; names the file, the
            key and what is allowed.
    """
    content = read_json(path, raises=NMoEError, most=_MOST)
    return _fits(_said_of_each(content, path), str(path), _Results)


def _by_settings(folder: Path) -> dict[str, Any]:
    """What the settings of a published run say of all its rows; of another run's nothing."""
    if (folder / "config.toml").is_file() or not is_run(folder):
        return {}
    told, usual = read_settings(folder, raises=NMoEError), _as_it_comes()
    found = {}
    for name, key in BY_SETTINGS.items():
        section, _, leaf = key.partition(".")
        found[name] = told.get(section, {}).get(leaf, usual[key])
    return found


@cache
def _as_it_comes() -> dict[str, Any]:
    return Config().flat()


def _said_of_each(content: Any, path: Path) -> Any:
    """What `said_once` was given; what is of another shape stays as it is."""
    if not isinstance(content, dict) or not isinstance(rows := content.get("rows"), list):
        return content
    found = dict(content)
    names, every = found.pop(_COLUMNS, None), found.pop(_EVERY_ROW, {})
    if isinstance(stages := found.get("stages"), dict):
        found["stages"] = {
            stage: _by_name(COST, cost, f"{path}: stages.{stage}")
            if isinstance(cost, list)
            else cost
            for stage, cost in stages.items()
        }
    if isinstance(names, list):
        rows = [_by_name(names, row, f"{path}: rows.{n}") for n, row in enumerate(rows)]
    if not isinstance(every, dict) or not all(isinstance(row, dict) for row in rows):
        return content
    every = {**_by_settings(path.parent), **every}
    return {**found, "rows": [{**every, **row} for row in rows]}


def _by_name(names: Sequence[Any], values: Any, place: str) -> dict[str, Any]:
    """A row of a table with its columns' names, or with those of the first of them."""
    if not isinstance(values, list) or len(values) > len(names):
        raise NMoEError(
            f"{place} = {_shown(values)}: it should be a list of values for the {len(names)} "
            "columns, or for the first of them"
        )
    return dict(zip(map(str, names), values, strict=False))


def said_once(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results that say once what all their rows have in common, for a smaller file.

    That is values under ``every-row``, and names under ``columns``: those that only some rows have
    come last, and a row without them is shorter. What a stage costs is a list: rounds, seconds,
    bytes up, bytes down.

    >>> said_once({"rows": [{"tau": 0.2, "test": "iid"}, {"tau": 0.2, "test": "local"}]})
    {'every-row': {'tau': 0.2}, 'columns': ['test'], 'rows': [['iid'], ['local']]}
    """
    rest = {key: value for key, value in results.items() if key != "rows"}
    if (stages := rest.pop("stages", None)) is not None:
        rest["stages"] = {
            stage: [cost[name] for name in COST] if cost.keys() == set(COST) else cost
            for stage, cost in stages.items()
        }
    if len(results["rows"]) == 1:
        return {"rows": results["rows"], **rest}
    every = _shared(results["rows"])
    rows = [{k: v for k, v in row.items() if k not in every} for row in results["rows"]]
    if (table := _in_columns(rows)) is None:
        return {_EVERY_ROW: every, "rows": rows, **rest}
    names, values = table
    return {_EVERY_ROW: every, _COLUMNS: names, "rows": values, **rest}


def _in_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]] | None:
    """Rows without their keys, and these in an order that each row has the first ones of.

    None if there is no such order: a row lacks a column amidst.
    """
    had = Counter(name for row in rows for name in row)
    names = sorted(had, key=had.__getitem__, reverse=True)
    if any(row.keys() != set(names[: len(row)]) for row in rows):
        return None
    return names, [[row[name] for name in names[: len(row)]] for row in rows]


def _shared(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all rows have, and all the same."""
    first, *others = rows
    return {
        name: value
        for name, value in first.items()
        if all(name in row and row[name] == value for row in others)
    }


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where the run in a folder comes from, published or not: what its provenance.json says.

    Raises:
        NMoEError: As `read_results`.
    """
    return _fits(
        read_origin(folder, raises=NMoEError), str(folder / "provenance.json"), _Provenance
    )


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The records of rounds.jsonl, as many as there are; a cut last line is left out.

    Lines that tell of whole stages, as a published run has them, are records again.

    Raises:
        NMoEError: As `read_results`; names the line.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise NMoEError(f"cannot read {path}: {error.strerror}") from None
    told = []
    for number, line in enumerate(lines[:-1], start=1):
        if line.strip():
            name = f"{path}, line {number}"
            told.append((name, parse_json(line, name, NMoEError)))
    if told and all(is_of_a_stage(one) for _, one in told):
        told = rounds_in_turn(told)
    return [_fits(one, name, _Round) for name, one in told]


def _fits(value: Any, name: str, model: type[_Part]) -> dict[str, Any]:
    """The value as it came, if it fits the model."""
    if not isinstance(value, dict):
        raise NMoEError(f"{name} holds {_shown(value)}; allowed: a JSON object")
    try:
        model.model_validate(value)
    except ValidationError as error:
        told = [_told(one["loc"], one["msg"], one["input"], one["type"]) for one in error.errors()]
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise NMoEError(f"{name}: {'; '.join(told[:_SHOWN])}{more}") from None
    return value


def _told(place: Sequence[int | str], message: str, value: Any, kind: str) -> str:
    """One fault in words: where, what it is, what is allowed."""
    where = ".".join(map(str, place))
    if kind == "missing":
        return f"{where} is missing"
    if kind == "value_error":
        return f"{where}: {message.removeprefix('Value error, ')}".removeprefix(": ")
    wanted = message[0].lower() + message[1:]
    return f"{where} = {_shown(value)}: {wanted}"


def _shown(value: Any) -> str:
    """A value for an error; of a large one its kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _rectangular(name: str, matrix: Sequence[Sequence[float]]) -> None:
    if len({len(row) for row in matrix}) > 1:
        raise ValueError(f"{name} has rows of different length")
