"""``nmoe partition``: who holds what, printed and drawn."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nmoe_flower.cli.options import add_recipe
from nmoe_flower.errors import NMoEError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from nmoe_flower.config import Config
    from nmoe_flower.data import ClientIndices, ImageData

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
    from nmoe_flower.data import coverage, label_counts, names_of_clients
    from nmoe_flower.progress import make_progress
    from nmoe_flower.report import draw_partition
    from nmoe_flower.running_data import open_data

    settings = Config.load(args.recipe, args.overrides)
    progress = make_progress("text", sys.stderr)
    try:
        data, clients = open_data(settings, progress)
    finally:
        progress.close()
    train = label_counts(data.train.labels, [c.train for c in clients], data.num_classes)
    test = label_counts(data.test.labels, [c.test_local for c in clients], data.num_classes)
    tables = {"train": train, "local test": test}
    if settings.data.validation_per_client:
        tables["validation"] = label_counts(
            data.train.labels, [c.validation for c in clients], data.num_classes
        )
    for title, counts in tables.items():
        print(f"{title} samples of {data.name}")
        print(_table(counts, data.class_names, names_of_clients(settings, data)), end="\n\n")
    for part in coverage(settings, data, clients):
        print(part)
    try:
        path = args.out or Path("partition.png")
        draw_partition(
            train.tolist(),
            test.tolist(),
            data.class_names,
            path,
            counts_validation=tables["validation"].tolist() if "validation" in tables else (),
            pictures=_pictures(settings, data, clients),
        )
        print(f"drawn to {path}")
    except NMoEError as error:
        if args.out is not None:
            raise
        print(f"nmoe: not drawn: {error}", file=sys.stderr)
    return 0


def _pictures(
    config: "Config", data: "ImageData", clients: "Sequence[ClientIndices]"
) -> dict[str, list[tuple[str, "npt.NDArray[np.uint8]"]]]:
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
