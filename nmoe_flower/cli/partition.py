"""``nmoe partition``: who holds what, printed and drawn."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nmoe_flower.cli.options import add_recipe
from nmoe_flower.errors import NMoEError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from nmoe_flower.config import Config
    from nmoe_flower.data import ClientIndices, ImageData
    from nmoe_flower.progress import Progress

    Pictures = dict[str, list[tuple[str, npt.NDArray[np.uint8]]]]

__all__ = ["ABOUT", "add_arguments"]

ABOUT = "show which client holds what"
_PICTURED, _PICTURES = 20, 10  # clients that images are drawn of, and how many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe partition``."""
    add_recipe(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="the picture (partition.png)")
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    """Print who holds what, train and test, and draw it."""
    from nmoe_flower.config import Config
    from nmoe_flower.progress import make_progress
    from nmoe_flower.report import draw_partition

    settings = Config.load(args.recipe, args.overrides)
    progress = make_progress("text", sys.stderr)
    try:
        look = _windows if settings.run.system == "language" else _samples
        held = look(settings, progress)
    finally:
        progress.close()
    for title, counts in held.tables.items():
        print(f"{title} {held.what}")
        print(_table(counts, held.kinds, held.clients), end="\n\n")
    for line in held.used:
        print(line)
    try:
        path = args.out or Path("partition.png")
        train, test, *validation = (counts.tolist() for counts in held.tables.values())
        draw_partition(
            train,
            test,
            held.kinds,
            path,
            counts_validation=validation[0] if validation else (),
            pictures=held.pictures,
            of_text=settings.run.system == "language",
        )
        print(f"drawn to {path}")
    except NMoEError as error:
        if args.out is not None:
            raise
        print(f"nmoe: not drawn: {error}", file=sys.stderr)
    return 0


class _Held(NamedTuple):
    """Who holds what.

    Attributes:
        what: What is counted, as ``samples of digits``.
        tables: Counts [clients, kinds]: ``train``, ``local test`` and, if there is any,
            ``validation``.
        kinds: Names of the classes, or of the domains.
        clients: Names of the clients.
        used: How much of the data that is, in lines.
        pictures: As `draw_partition` takes them.
    """

    what: str
    tables: "dict[str, npt.NDArray[np.int64]]"
    kinds: Sequence[str]
    clients: Sequence[str]
    used: Sequence[str] = ()
    pictures: "Pictures | None" = None


def _samples(config: "Config", progress: "Progress") -> _Held:
    """Samples of each class."""
    from nmoe_flower.data import coverage, label_counts, names_of_clients
    from nmoe_flower.running_data import open_data

    data, clients = open_data(config, progress)
    parts = {
        "train": (data.train, [client.train for client in clients]),
        "local test": (data.test, [client.test_local for client in clients]),
    }
    if config.data.validation_per_client:
        parts["validation"] = (data.train, [client.validation for client in clients])
    return _Held(
        f"samples of {data.name}",
        {
            title: label_counts(split.labels, rows, data.num_classes)
            for title, (split, rows) in parts.items()
        },
        data.class_names,
        names_of_clients(config, data),
        [str(part) for part in coverage(config, data, clients)],
        _pictures(config, data, clients),
    )


def _windows(config: "Config", progress: "Progress") -> _Held:
    """Windows of each domain, for language models."""
    import numpy as np

    from nmoe_flower.running_data import open_text

    data = open_text(config, progress)
    parts = {"train": data.train, "local test": data.test}
    if config.data.validation_per_client:
        parts["validation"] = data.validation
    tables = {}
    for title, split in parts.items():
        tables[title] = np.zeros((data.num_clients, len(data.domain_names)), np.int64)
        np.add.at(tables[title], (split.clients, split.domains), 1)
    return _Held(f"windows of {data.name}", tables, data.domain_names, data.client_names)


def _pictures(
    config: "Config", data: "ImageData", clients: "Sequence[ClientIndices]"
) -> "Pictures":
    """Some training images of each client, with its name of their class, where clients differ."""
    from nmoe_flower.data import names_of_clients

    if config.data.scheme != "natural" or config.data.kind != "images":
        return {}
    names = names_of_clients(config, data)[:_PICTURED]
    return {
        f"{number} {name}" if name != str(number) else name: [
            (data.class_names[data.train.labels[row]], data.train.images[row])
            for row in client.train[:_PICTURES]
        ]
        for number, (name, client) in enumerate(zip(names, clients, strict=False))
    }


def _table(
    counts: "npt.NDArray[np.int64]", class_names: Sequence[str], clients: Sequence[str]
) -> str:
    from nmoe_flower.summary import padded

    rows = [["client", *(name[:10] for name in class_names), "total", "dominant"]]
    for client, row in enumerate(counts):
        share = row.max() / max(row.sum(), 1)
        name = clients[client] if clients[client] == str(client) else f"{client} {clients[client]}"
        rows.append([name[:24], *map(str, row), str(row.sum()), f"{share:.1%}"])
    rows.append(["all", *map(str, counts.sum(axis=0)), str(counts.sum()), ""])
    return padded(rows)
