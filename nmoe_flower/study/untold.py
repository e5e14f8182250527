"""What is left of a run whose tests may not be told: of a sweep, all that has not been chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

from nmoe_flower.catalogue import VALIDATION

__all__ = ["rounds_without_tests", "without_tests"]

_TEST = "-test"  # ends the name of a stage that tests another


def without_tests(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run without its tests; those on validation data, and all costs, stay.

    >>> tests = {"iid": {"rot90": 0.5}, "validation": {"rot90": 0.6}}
    >>> told = {"rows": [{"test": "iid"}, {"test": "validation"}], "by_owner": {"lda": tests},
    ...         "routing": {"lda/iid": [[1.0]]}, "representation": {"knn_accuracy": 0.7}}
    >>> without_tests({**told, "seconds": 1.5})
    {'rows': [{'test': 'validation'}], 'by_owner': {'lda': {'validation': {'rot90': 0.6}}}, \
'seconds': 1.5}
    """
    kept = {name: value for name, value in results.items() if name != "representation"}
    kept["rows"] = [row for row in results["rows"] if row["test"] == VALIDATION]
    if "by_owner" in kept:
        kept["by_owner"] = {
            gate: {test: found for test, found in tests.items() if test == VALIDATION}
            for gate, tests in kept["by_owner"].items()
        }
    if "routing" in kept:
        end = f"/{VALIDATION}"
        kept["routing"] = {name: m for name, m in kept["routing"].items() if name.endswith(end)}
    return {name: value for name, value in kept.items() if value != {}}


def rounds_without_tests(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of a ``rounds.jsonl``, those of tests without what is no validation.

    >>> rounds_without_tests([{"stage": "extractor", "metrics": {"loss": 1.0}},
    ...     {"stage": "extractor-test", "metrics": {"accuracy-iid": 0.5, "knn-accuracy": 0.4}}])
    [{'stage': 'extractor', 'metrics': {'loss': 1.0}}, {'stage': 'extractor-test', 'metrics': {}}]
    """
    return [
        {**one, "metrics": _validated(one.get("metrics") or {})}
        if one["stage"].endswith(_TEST)
        else dict(one)
        for one in records
    ]


def _validated(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name.endswith(f"-{VALIDATION}")}
