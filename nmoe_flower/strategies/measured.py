"""What clients measured, averaged over them; what cannot be averaged is left out, never fatal."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import MetricRecord, RecordDict

from nmoe_flower import records
from nmoe_flower.strategies.aggregation import shares_of

__all__ = ["Measured", "agreeing", "average", "listed", "only_finite"]

Value = int | float | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of one usable reply.

    Attributes:
        client: Who sent it.
        weight: Finite, at least 0; 0: the client had no examples, and so measured nothing.
        metrics: As they came.
    """

    client: int
    weight: float
    metrics: MetricRecord


def average(measured: Sequence[Measured], without: str) -> tuple[MetricRecord, dict[str, str]]:
    """The weighted mean of every metric that can be averaged.

    A metric can be averaged if every client that had examples sent it, finite, and all as a number
    or all as a list of one length.

    Args:
        measured: Of every usable reply, in a fixed order.
        without: The metric that is the weight.

    Returns:
        The means; and for each metric that is left out, which clients sent what.
    """
    counted = [one for one in measured if one.weight > 0]
    means, left_out = MetricRecord(), dict[str, str]()
    shares = shares_of([one.weight for one in counted]) if counted else []
    names = dict.fromkeys(name for one in counted for name in one.metrics if name != without)
    for name in names:
        values = {one.client: one.metrics.get(name) for one in counted}
        forms = {client: _form(value) for client, value in values.items()}
        if len(set(forms.values())) > 1 or not all(map(_is_finite, values.values())):
            left_out[name] = _told(forms)
            continue
        mean = _mean(list(values.values()), shares)
        if _is_finite(mean):
            means[name] = mean
        else:
            left_out[name] = "its mean is not finite"
    return means, left_out


def only_finite(metrics: MetricRecord) -> tuple[MetricRecord, dict[str, str]]:
    """The finite ones; and for each that is left out, its value."""
    left_out = {n: f"it is {_form(value)}" for n, value in metrics.items() if not _is_finite(value)}
    kept = {name: value for name, value in metrics.items() if name not in left_out}
    return MetricRecord(kept), left_out


def agreeing(measured: Sequence[Measured]) -> tuple[list[RecordDict], list[int]]:
    """The records whose metric names most clients share, for an aggregation that needs that.

    Returns:
        Those records, as Flower hands them over; and the clients whose names are others.
    """
    names = Counter(frozenset(one.metrics) for one in measured)
    common = names.most_common(1)[0][0] if names else frozenset()
    kept = [
        RecordDict({records.METRICS: one.metrics})
        for one in measured
        if one.metrics.keys() == common
    ]
    return kept, [one.client for one in measured if one.metrics.keys() != common]


def listed(clients: Iterable[int], most: int = 5) -> str:
    """Clients in words: ``client 3``, ``clients 1, 2 and 5 others``.

    >>> listed([3]), listed([1, 2]), listed(range(9))
    ('client 3', 'clients 1, 2', 'clients 0, 1, 2, 3, 4 and 4 others')
    """
    found = list(clients)
    text = ", ".join(map(str, found[:most]))
    rest = len(found) - most
    more = f" and {rest} other{'s' if rest > 1 else ''}" if rest > 0 else ""
    return f"client{'s' if len(found) > 1 else ''} {text}{more}"


def _mean(values: Sequence[Any], shares: Sequence[float]) -> Value:
    """In the order of the clients, as Flower sums."""
    if not isinstance(values[0], list):
        return float(sum(value * share for value, share in zip(values, shares, strict=True)))
    means = [value * shares[0] for value in values[0]]
    for value, share in zip(values[1:], shares[1:], strict=True):
        means = [mean + one * share for mean, one in zip(means, value, strict=True)]
    return means


def _form(value: Value | None) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        whole = "a list" if _is_finite(value) else "a list with NaN, infinite or huge entries"
        return f"{whole} of length {len(value)}"
    if _is_finite(value):
        return "a number"
    return "an integer that no float holds" if isinstance(value, int) else f"{value}"


def _is_finite(value: Value | None) -> bool:
    """Whether floats hold it; a list: all of it. Nothing is not finite."""
    if value is None:
        return False
    try:
        return all(map(math.isfinite, value)) if isinstance(value, list) else math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _told(forms: Mapping[int, str]) -> str:
    by_form: dict[str, list[int]] = {}
    for client, form in forms.items():
        by_form.setdefault(form, []).append(client)
    return "; ".join(f"{listed(clients)} sent {form}" for form, clients in by_form.items())
