"""``nmoe infer``: images or documents in, lines of JSON out; of a language model `infer_text`."""

import argparse
import io
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nmoe_flower.arguments import Number, OutputFile, Whole
from nmoe_flower.cli.infer_text import add_text, run_text
from nmoe_flower.cli.options import (
    add_keys,
    add_metrics_port,
    check_keys,
    check_places,
    needs_serve,
    serve_metrics,
    take_node,
)

if TYPE_CHECKING:
    from nmoe_flower.cli.images import Loaded
    from nmoe_flower.inference import Answer, Client

__all__ = ["ABOUT", "add_arguments"]

T = TypeVar("T")

ABOUT = "classify images, or score and write text, with the peers' help"

_DEADLINE = 1.0
_EXAMPLES = """\
examples:
  nmoe infer bundles/0 photo.png                          this device's expert alone
  nmoe infer --node node-0 photo.png                      all files from a folder of nmoe deploy
  nmoe infer bundles/0 photo.png --peers peers.json --insecure
  nmoe infer bundle images/ more.npy --peers peers.json --certificate camera-0.pem \\
             --key camera-0.key --authority ca.pem --records traffic.jsonl
  cat photo.png | nmoe infer bundle - --peers peers.json --insecure
  nmoe infer bundles/0 --text "def f(x):" --peers peers.json --insecure
  nmoe infer bundles/0 --text "def f(x):" --generate 32 --peers peers.json --insecure
  nmoe infer bundles/0 letter.txt notes/ --peers peers.json --insecure

One line of JSON per image, or per document where text was classified: class, probability, the
experts the gate chose, who answered, the milliseconds of its batch, and what was fallen back to.
What cannot be read gets a line with "error", and the exit code is then 1. Where a language model
was trained a text gets one line: bits per byte, the experts that were chosen, who answered, bytes
sent and received. With --generate the text goes on standard output as it comes, and that line to
standard error.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe infer``."""
    parser.description = (
        "Classify images or text, or score and write text, with the help of the other devices."
    )
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="this device's folder; left out with --node"
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders, .npy arrays, - for stdin; tables or documents, if it was "
        "trained on such",
    )
    parser.add_argument(
        "--peers", type=Path, metavar="FILE", help="peers.json; without, nobody else is asked"
    )
    add_keys(parser)
    parser.add_argument("--resize", action="store_true", help="image files of another size, to fit")
    parser.add_argument(
        "--top-k", type=Whole(1, 10_000), metavar="K", help="experts per image (the gate's)"
    )
    parser.add_argument(
        "--batch-size",
        type=Whole(1, 1 << 20),
        default=64,
        metavar="N",
        help="images at once (%(default)s)",
    )
    seconds = Number(0, 86_400, open=True)
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        help="how long peers may take for a batch (1; of text 10)",
    )
    parser.add_argument(
        "--hedge-after", type=seconds, metavar="SECONDS", help="then ask the next best besides"
    )
    parser.add_argument(
        "--prefer-margin", type=Number(0, 1e6), default=0.0, metavar="SCORE",
        help="how much lower a healthier expert may score (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--encoding",
        choices=("float32", "float16", "int8"),
        help="of the latents that are sent (float32; of text float16)",
    )
    add_text(parser)
    add_metrics_port(parser)
    parser.add_argument(
        "--records", type=OutputFile(), metavar="FILE", help="append a line per batch"
    )

    def command(args: argparse.Namespace) -> int:
        _check_text(parser, args)
        if args.node is not None:
            check_keys(parser, args)
            args.bundle = None
        elif args.peers is not None:
            check_keys(parser, args)
        elif args.insecure or any((args.certificate, args.key, args.authority)):
            parser.error("--certificate, --key, --authority and --insecure need --peers FILE")
        with needs_serve("nmoe infer"):
            take_node(args)
            check_places(args)
            import nmoe_flower.inference.ask  # noqa: F401
        return run_text(args) if args.text is not None and _of_language(args) else _run(args)

    parser.set_defaults(command=command)


def _check_text(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Leave with a usage error if options of text and of images are mixed."""
    if args.text is not None:
        if args.images:
            parser.error(f"--text TEXT stands for images and documents: leave out {args.images[0]}")
        if args.generate is not None and args.prefix is not None:
            parser.error("--prefix is of scoring: leave it out with --generate")
        whose = dict.fromkeys(("hedge_after", "records", "metrics_port"), "images and files alone")
        if args.generate is None:
            whose |= dict.fromkeys(("temperature", "seed"), "--generate")
    else:
        whose = dict.fromkeys(("generate", "temperature", "seed", "prefix"), "--text TEXT")
    for name, told in whose.items():
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is of {told}")


def _of_language(args: argparse.Namespace) -> bool:
    """Whether a text is scored or written by a language model, and not classified.

    Raises:
        ConfigError: It is classified, and an option is of a language model.
    """
    from nmoe_flower.errors import ConfigError
    from nmoe_flower.inference.bundle import read_manifest

    values = read_manifest(args.bundle)
    config = values.get("config") if isinstance(values, dict) else None
    if not isinstance(config, dict) or "kind" in values or config.get("data.kind") != "text":
        return True
    names = [name for name in ("generate", "prefix") if getattr(args, name) is not None]
    names += ["send"] if args.send != "hidden" else []
    if names:
        raise ConfigError(
            f"--{names[0]} is of a language model, and {args.bundle} classifies text; allowed: "
            "leave it out"
        )
    return False


def _run(args: argparse.Namespace) -> int:
    """Classify every image or document; returns 1 if one of them could not be read."""
    import logging

    import numpy as np

    from nmoe_flower.files import append_line, to_json
    from nmoe_flower.inference import Bundle, Client, RouterMetrics

    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    failed, metrics = 0, RouterMetrics()
    bundle = Bundle.load(args.bundle)
    if args.weights is not None:
        bundle = bundle.with_weights(str(args.weights))
    with (
        serve_metrics(metrics.registry, args.metrics_port),
        Client.open(
            bundle,
            peers=args.peers,
            certificate=args.certificate,
            key=args.key,
            authority=args.authority,
            insecure=args.insecure,
            top_k=args.top_k,
            deadline=args.deadline or _DEADLINE,
            hedge_after=args.hedge_after,
            prefer_margin=args.prefer_margin,
            encoding=args.encoding or "float32",
            metrics=metrics,
        ) as client,
    ):
        for batch in _batches(_inputs(args, client), args.batch_size):
            good = [loaded.pixels for loaded in batch if loaded.pixels is not None]
            answer = client.predict(np.stack(good)) if good else None
            if answer is not None and args.records is not None:
                append_line(args.records, answer.record.line())
            for line in _lines(batch, answer, client):
                print(to_json(line), flush=True)
            failed += len(batch) - len(good)
    return 1 if failed else 0


def _inputs(args: argparse.Namespace, client: "Client") -> "Iterator[Loaded]":
    """What the sources hold, read as the bundle's training data were."""
    from nmoe_flower.cli.images import read_images, read_rows, read_texts

    section = client.bundle.config.data
    if section.kind == "text":
        unit = client.bundle.config.text.unit
        if args.text is None or args.text == "-":
            sources = args.images if args.text is None else ["-"]
            return read_texts(sources, client.row, unit=unit, stdin=sys.stdin.buffer)
        typed = read_texts(["-"], client.row, unit="files", stdin=io.BytesIO(args.text.encode()))
        return (loaded._replace(name="--text") for loaded in typed)
    if section.kind == "features":
        return read_rows(args.images, section.feature_columns)
    channels, height, width = client.bundle.manifest.image_shape
    return read_images(
        args.images,
        (channels, height, width),
        stdin=sys.stdin.buffer,
        resize=args.resize,
        fit=section.fit if section.size else None,
    )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _lines(
    batch: "list[Loaded]", answer: "Answer | None", client: "Client"
) -> Iterator[dict[str, Any]]:
    """One line per image or document, in their order."""
    rows = iter(range(len(batch)))
    kind = "document" if client.bundle.reads_text else "image"
    for loaded in batch:
        if loaded.pixels is None or answer is None:
            yield {kind: loaded.name, "error": loaded.error}
        else:
            yield {kind: loaded.name, **_facts(answer, next(rows), client)}


def _facts(answer: "Answer", row: int, client: "Client") -> dict[str, Any]:
    from nmoe_flower.inference.ask import SILENT

    record, peers = answer.record, client.experts.peers.by_partition
    by = [expert for expert in record.answered_by[row].tolist() if expert != SILENT]
    chosen = record.expert_ids[row].tolist()
    fallback = None
    if not set(by) <= set(chosen):
        fallback = "local" if by == [record.own] else "next-best"
    names = ["self" if e == record.own else peers[e].name if e in peers else "" for e in by]
    return {
        "class": answer.classes[row],
        "probability": round(float(answer.probabilities[row].max()), 6),
        "experts": chosen,
        "answered_by": by,
        "peers": names,
        "ms": round(record.ms, 3),
        "fallback": fallback,
    }
