"""Rounds in a line per stage, as they are published: a third of the bytes of a line per round."""

from collections.abc import Mapping, Sequence
from typing import Any

from nmoe_flower.errors import NMoEError

__all__ = ["is_of_a_stage", "rounds_by_stage", "rounds_in_turn"]

_EVERY_ROUND = "every-round"
_TEST = "-test"
_Record = Mapping[str, Any]


def rounds_by_stage(records: Sequence[_Record]) -> list[dict[str, Any]]:
    """Records of rounds as one per stage: each value is a list over its rounds, or said once.

    Args:
        records: The records, in order.

    >>> rounds_by_stage([{"stage": "head", "round": n, "metrics": {"loss": 1 / n}} for n in (1, 2)])
    [{'stage': 'head', 'round': [1, 2], 'metrics': {'loss': [1.0, 0.5]}}]
    """
    stages: dict[str, list[_Record]] = {}
    for record in records:
        stages.setdefault(record["stage"], []).append(record)
    return [{"stage": stage, **_listed(ones)} for stage, ones in stages.items()]


def _listed(records: Sequence[_Record]) -> dict[str, Any]:
    listed: dict[str, Any] = {}
    for key in dict.fromkeys(key for record in records for key in record if key != "stage"):
        values = [record.get(key) for record in records]
        if key == "metrics":
            listed[key] = _listed([value or {} for value in values])
        elif key != "round" and values.count(values[0]) == len(values) > 1:
            listed[key] = {_EVERY_ROUND: values[0]}
        else:
            listed[key] = values
    return listed


def is_of_a_stage(told: Any) -> bool:
    """Whether a line of rounds.jsonl tells of all rounds of a stage."""
    return isinstance(told, dict) and isinstance(told.get("round"), list)


def rounds_in_turn(told: Sequence[tuple[str, _Record]]) -> list[tuple[str, dict[str, Any]]]:
    """The records again: the stages in order, a test after the round that it follows.

    Args:
        told: What `rounds_by_stage` made, each with its name for errors.

    Raises:
        NMoEError: A value is not told of each round.
    """
    records = []
    for name, stage in told:
        try:
            records += [(name, _at(stage, place)) for place in range(len(stage["round"]))]
        except (AttributeError, IndexError, KeyError, TypeError):
            raise NMoEError(f"{name}: a value is not told of each round of the stage") from None
    order = list(dict.fromkeys(_begins(stage) for _, stage in told))
    return sorted(records, key=lambda one: _turn(one[1], order))


def _at(listed: _Record, place: int) -> dict[str, Any]:
    found = {}
    for key, value in listed.items():
        if key == "metrics":
            found[key] = _at(value, place)
        elif key == "stage":
            found[key] = value
        else:
            one = value[place] if isinstance(value, list) else value[_EVERY_ROUND]
            if one is not None:
                found[key] = one
    return found


def _turn(record: _Record, order: Sequence[str]) -> tuple[int, int, bool]:
    stage, number = str(record.get("stage")), record.get("round")
    place = number if isinstance(number, int) else 0  # of another kind it is refused later
    return order.index(_begins(record)), place, stage.endswith(_TEST)


def _begins(record: _Record) -> str:
    return str(record.get("stage")).removesuffix(_TEST)
