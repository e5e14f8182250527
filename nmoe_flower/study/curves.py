"""How runs went: a tested metric against rounds, bytes and seconds; and who asked whom.

Both stand in ``table.json`` beside the rows, so that figures need no run folder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmoe_flower.errors import NMoEError
from nmoe_flower.study.product import frozen, same
from nmoe_flower.study.rows import RunOutcome

__all__ = [
    "Curve",
    "RoutingMap",
    "curves_from_json",
    "curves_of",
    "curves_to_json",
    "routing_from_json",
    "routing_of",
    "routing_to_json",
]

_TEST = "-test"
_COLUMNS = ("rounds", "bytes", "seconds", "scores")
_CURVE_DIGITS, _SHARE_DIGITS = 6, 4


@dataclass(frozen=True)
class Curve:
    """One run's tests of one metric while it trained.

    Attributes:
        variant: Name of the variant.
        values: By axis, the value.
        seed: The seed.
        test: The test's name: ``local``, ``iid`` or ``validation``.
        metric: The metric, as ``accuracy``.
        rounds: Rounds of training before each test.
        bytes: Bytes up and down per device until then.
        seconds: Seconds of training until then.
        scores: What was measured.
    """

    variant: str
    values: Mapping[str, Any]
    seed: int
    test: str
    metric: str
    rounds: tuple[float, ...]
    bytes: tuple[float, ...]
    seconds: tuple[float, ...]
    scores: tuple[float, ...]

    def at(self, dimension: str) -> Any:
        """Where it stands in a dimension: variant, test, metric, seed, or an axis."""
        if dimension in ("variant", "test", "metric", "seed"):
            return getattr(self, dimension)
        return self.values.get(dimension)


@dataclass(frozen=True)
class RoutingMap:
    """Who asked whom: a matrix of shares, the mean over the seeds.

    Attributes:
        variant: Name of the variant.
        values: By axis, the value.
        gate: Who routed.
        test: In which test.
        seeds: The seeds.
        shares: From each client (row) to each expert (column); rows sum to 1.
    """

    variant: str
    values: Mapping[str, Any]
    gate: str
    test: str
    seeds: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def local_ratio(self) -> float:
        """Share of the samples that stay at home, the mean of the diagonal."""
        return float(np.trace(np.asarray(self.shares))) / len(self.shares)

    def at(self, dimension: str) -> Any:
        """Where it stands in a dimension: variant, gate, test, or an axis."""
        if dimension in ("variant", "gate", "test"):
            return getattr(self, dimension)
        return self.values.get(dimension)

    def stands(self, dimension: str, values: Sequence[Any]) -> bool:
        """Whether it stands at one of these."""
        return any(same(self.at(dimension), value) for value in values)


def curves_of(one: RunOutcome, records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves of a run, one for each test and metric.

    Args:
        one: The run.
        records: What its rounds.jsonl holds, in order.
    """
    run, clients = one.run, one.run.config.data.num_clients
    moved = spent = 0.0
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    tested = {r["stage"].removesuffix(_TEST) for r in records if r["stage"].endswith(_TEST)}
    for record in records:
        if record["stage"] in tested:
            moved += ((record.get("bytes_up") or 0) + (record.get("bytes_down") or 0)) / clients
            spent += record.get("seconds") or 0.0
        elif record["stage"].removesuffix(_TEST) in tested:
            for name, value in (record.get("metrics") or {}).items():
                metric, _, test = name.rpartition("-")
                if metric and isinstance(value, int | float) and math.isfinite(value):
                    place = tuple(
                        _rounded(v, _CURVE_DIGITS) for v in (record["round"], moved, spent, value)
                    )
                    found.setdefault((metric.replace("-", "_"), test), []).append(place)
    return [
        Curve(run.named, run.values, run.seed, test, metric, *zip(*points, strict=True))
        for (metric, test), points in found.items()
        if test in ("local", "iid", "validation")
    ]


def routing_of(outcomes: Sequence[RunOutcome], gates: Sequence[str]) -> list[RoutingMap]:
    """Who asked whom in every variant, gate and test; the mean over the finished seeds."""
    found = []
    for folder in dict.fromkeys(one.run.variant for one in outcomes):
        runs = [one for one in outcomes if one.run.variant == folder and one.results is not None]
        names = dict.fromkeys(name for one in runs for name in _maps_of(one))
        for name in names:
            gate, _, test = name.rpartition("/")
            with_it = [one for one in runs if name in _maps_of(one)]
            if gate not in gates:
                continue
            matrices = [np.asarray(_maps_of(one)[name]) for one in with_it]
            if len({matrix.shape for matrix in matrices}) > 1:
                raise NMoEError(f"{folder}: the routing of {name} has another shape in each seed")
            mean = np.mean(matrices, axis=0)
            shares = tuple(tuple(_rounded(v, _SHARE_DIGITS) for v in row) for row in mean.tolist())
            run = with_it[0].run
            seeds = tuple(one.run.seed for one in with_it)
            found.append(RoutingMap(run.named, run.values, gate, test, seeds, shares))
    return found


def _maps_of(one: RunOutcome) -> Mapping[str, Any]:
    """By gate and test, a run's matrix of who asked whom; published runs may have none."""
    return (one.results or {}).get("routing") or {}


def curves_to_json(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The curves as they stand in ``table.json``."""
    return [
        {
            "variant": curve.variant, "values": dict(curve.values), "seed": curve.seed,
            "test": curve.test, "metric": curve.metric,
            **{name: list(getattr(curve, name)) for name in _COLUMNS},
        }
        for curve in curves
    ]  # fmt: skip


def curves_from_json(curves: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves of a ``table.json``, read back."""
    return [
        Curve(
            one["variant"], _values(one), int(one["seed"]), one["test"], one["metric"],
            *(tuple(map(float, one[name])) for name in _COLUMNS),
        )
        for one in curves
    ]  # fmt: skip


def routing_to_json(routing: Sequence[RoutingMap]) -> list[dict[str, Any]]:
    """The matrices as they stand in ``table.json``."""
    return [
        {
            "variant": one.variant, "values": dict(one.values), "gate": one.gate, "test": one.test,
            "seeds": list(one.seeds), "shares": [list(row) for row in one.shares],
        }
        for one in routing
    ]  # fmt: skip


def routing_from_json(routing: Sequence[Mapping[str, Any]]) -> list[RoutingMap]:
    """The matrices of a ``table.json``, read back."""
    return [
        RoutingMap(
            one["variant"], _values(one), one["gate"], one["test"],
            tuple(map(int, one["seeds"])), tuple(tuple(map(float, row)) for row in one["shares"]),
        )
        for one in routing
    ]  # fmt: skip


def _values(one: Mapping[str, Any]) -> dict[str, Any]:
    return {axis: frozen(value) for axis, value in one["values"].items()}


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
