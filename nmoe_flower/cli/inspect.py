"""``nmoe partition``, ``nmoe report`` and ``nmoe config``: look at data, results and settings."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import numpy.typing as npt
from pydantic.fields import FieldInfo

from nmoe_flower.config import Config
from nmoe_flower.config.section import NamesOrOwn
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import to_toml
from nmoe_flower.own_code import FORM
from nmoe_flower.progress import make_progress
from nmoe_flower.summary import aligned

__all__ = ["config", "partition", "report"]

Counts = npt.NDArray[np.int64]


def partition(recipe: Path | None, overrides: Sequence[str], out: Path | None) -> int:
    """Print who holds what, train and test, and draw it into ``out`` (``partition.png``)."""
    from nmoe_flower.cli.data import open_data
    from nmoe_flower.data import label_counts, names_of_clients, usage
    from nmoe_flower.report import draw_partition

    settings = Config.load(recipe, overrides)
    progress = make_progress("text", sys.stderr)
    try:
        data, clients = open_data(settings, progress)
    finally:
        progress.close()
    train = label_counts(data.train.labels, [c.train for c in clients], data.num_classes)
    test = label_counts(data.test.labels, [c.test_local for c in clients], data.num_classes)
    for title, counts in (("train", train), ("local test", test)):
        print(f"{title} samples of {data.name}")
        print(_table(counts, data.class_names, names_of_clients(settings, data)), end="\n\n")
    for part in usage(settings, data, clients):
        print(part)
    try:
        path = out or Path("partition.png")
        draw_partition(train.tolist(), test.tolist(), data.class_names, path)
        print(f"drawn to {path}")
    except NMoEError as error:
        if out is not None:
            raise
        print(f"nmoe: not drawn: {error}", file=sys.stderr)
    return 0


def _table(counts: Counts, class_names: Sequence[str], clients: Sequence[str]) -> str:
    rows = [["client", *(name[:10] for name in class_names), "total", "dominant"]]
    for client, row in enumerate(counts):
        share = row.max() / max(row.sum(), 1)
        name = clients[client] if clients[client] == str(client) else f"{client} {clients[client]}"
        rows.append([name[:24], *map(str, row), str(row.sum()), f"{share:.1%}"])
    rows.append(["all", *map(str, counts.sum(axis=0)), str(counts.sum()), ""])
    return aligned(rows)


def report(runs: Sequence[Path], out: Path) -> int:
    """Write tables and figures of finished runs."""
    from nmoe_flower.report import write_report

    path = write_report(runs, out)
    for folder, times in Counter(run.resolve() for run in runs).items():
        if times > 1:
            print(f"note: {folder} is named {times} times and counts once", file=sys.stderr)
    print(f"report  {path}")
    return 0


def config(recipe: Path | None, overrides: Sequence[str]) -> int:
    """Print the resolved recipe; every key has a comment that says what it may be."""
    settings = Config.load(recipe, overrides)
    for name, section in Config.model_fields.items():
        model: Any = section.annotation
        print(f"[{name}]")
        for key, field in model.model_fields.items():
            value = getattr(getattr(settings, name), key)
            print(f"# {_comment(field)}")
            print(to_toml({field.alias or key.replace("_", "-"): value}), end="")
        print()
    return 0


def _comment(field: FieldInfo) -> str:
    """The description, and what is allowed.

    >>> from nmoe_flower.config import DataConfig
    >>> _comment(DataConfig.model_fields["tau"])
    'dominant share is 1 / (1 + tau) (number > 0)'
    """
    allowed = _allowed(field)
    if not field.description:
        return allowed
    return field.description if allowed == "text" else f"{field.description} ({allowed})"


def _allowed(field: FieldInfo) -> str:
    kind = field.annotation
    own = next((m for m in field.metadata if isinstance(m, NamesOrOwn)), None)
    if own is not None:
        return f"one of {', '.join(own.names)}, or {FORM}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if get_origin(inner) is Literal:
            return f"list of {', '.join(map(str, get_args(inner)))}"
        if get_origin(inner) is Annotated:
            return f"list of {', '.join(get_args(inner)[1].names)}, or {FORM}"
        kinds = {int: "whole numbers", str: "names"}
        return f"list of {kinds.get(inner, 'numbers')}"
    if kind is bool:
        return "true or false"
    if kind is str:
        return "text"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if hasattr(bound, name)
    ]
    return " ".join(["whole number" if kind is int else "number", " and ".join(bounds)]).strip()
