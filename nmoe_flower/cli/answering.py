"""``nmoe infer``: images in, lines of JSON out."""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from nmoe_flower.cli.images import Loaded, read_images
from nmoe_flower.cli.options import serve_metrics
from nmoe_flower.cli.rows import read_rows
from nmoe_flower.files import append_line, to_json
from nmoe_flower.inference.ask import SILENT, Answer, Client, RouterMetrics

__all__ = ["run"]

T = TypeVar("T")


def run(args: argparse.Namespace) -> int:
    """Classify every image; returns 1 if one of them could not be read.

    Raises:
        NMoEError: The bundle, the list of peers, a certificate or a setting is wrong.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    failed, metrics = 0, RouterMetrics()
    with (
        serve_metrics(metrics.registry, args.metrics_port),
        Client.open(
            args.bundle,
            peers=args.peers,
            certificate=args.certificate,
            key=args.key,
            authority=args.authority,
            insecure=args.insecure,
            top_k=args.top_k,
            deadline=args.deadline,
            hedge_after=args.hedge_after,
            prefer_margin=args.prefer_margin,
            encoding=args.encoding,
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


def _inputs(args: argparse.Namespace, client: Client) -> Iterator[Loaded]:
    """What the sources hold, read as the bundle's training data were."""
    section = client.bundle.config.data
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


def _lines(batch: list[Loaded], answer: Answer | None, client: Client) -> Iterator[dict[str, Any]]:
    """One line per image, in the order of the images."""
    rows = iter(range(len(batch)))
    for loaded in batch:
        if loaded.pixels is None or answer is None:
            yield {"image": loaded.name, "error": loaded.error}
        else:
            yield {"image": loaded.name, **_facts(answer, next(rows), client)}


def _facts(answer: Answer, row: int, client: Client) -> dict[str, Any]:
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
