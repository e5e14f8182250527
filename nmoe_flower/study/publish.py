"""What is kept of finished runs where others can see it: small files, no paths of the machine.

``<study>/runs.json`` gets the provenance without the samples of each class, which the data's
fingerprint stands for, and of the configuration what is not as it comes, all of it once (`begun`).
``<study>/<variant>/seed-N/`` gets of the results what tables are made of, with six significant
digits and what all rows share once, and of rounds those that figures need, a line per stage. The
layout is that of a study's runs, so whatever reads those reads this.
"""

import io
import json
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nmoe_flower.backbone_files import TRANSFORMERS
from nmoe_flower.begun import RUNS, keep_begun, read_origin
from nmoe_flower.catalogue import VALIDATION
from nmoe_flower.config import Config
from nmoe_flower.errors import NMoEError
from nmoe_flower.files import (
    all_or_none,
    lines_of_json,
    read_text,
    rounded,
    write_bytes,
    write_text,
)
from nmoe_flower.report import (
    BY_SETTINGS,
    canvas,
    draw_figures,
    read_results,
    read_rounds,
    rounds_by_stage,
    said_once,
)
from nmoe_flower.results import worst_client
from nmoe_flower.study.findings import Findings, findings_to_json
from nmoe_flower.study.measured import ROW_METRICS
from nmoe_flower.study.policies import draw_policies, refuse_more_bytes
from nmoe_flower.study.rows import KEPT_DIGITS
from nmoe_flower.study.share import HEAD_STAGE
from nmoe_flower.study.untold import rounds_without_tests, without_tests

__all__ = [
    "PUBLISHED_DOTS",
    "kept_rounds",
    "portable",
    "publish_run",
    "publish_study",
    "small_figures",
    "small_picture",
]

PUBLISHED_DOTS = 140  # an inch of a figure that is drawn from what is published: for pages

_COLOURS = 127  # and white
_OF_ROUNDS = 5  # significant digits
_KEPT = 50  # rounds of a stage
_DRAWN = 200  # of one that a figure is drawn over
# What tells CIFAR-10 in any size of its images, in domains or not; fingerprints differ there.
_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR10 = {"train": dict.fromkeys(_CLASSES, 5000), "test": dict.fromkeys(_CLASSES, 1000)}
_COLUMNS = ("stage", "round", "metrics")
_TRAFFIC = ("bytes_up", "bytes_down")
# Of the second system, what its curves are drawn from.
_CURVES = {
    "alignment": ("load-variation", "load-variation-total", "bytes-to-part", "elapsed-seconds"),
    "alignment-test": ("accuracy-iid",),
}
_OF_CLIENTS = ("accuracy", "bits_per_byte")  # of each, what pages show
_REVISION = 12  # characters of it
_DATE = 10  # of the moment at which it began
_ASKED = ("identity", "describe", "choices", "chosen")  # stages that no table can tell of
_OVER_ROUNDS: dict[str, Callable[[str], bool]] = {
    "rounds": lambda name: "loss" in name or "accuracy" in name,
    "representation": lambda name: name != "loss",
}


def publish_study(findings: Findings, runs: Path, target: Path) -> Path:
    """Copy what is kept of a study's finished runs, and its ``table.json``; all or nothing.

    What stands in the folder already and is not written again stays.

    Args:
        findings: What the study has found, read from run folders; of those that are published
            in ``target`` already nothing is written anew.
        runs: The folder that holds the study's folder. If it is the target, only ``table.json``
            is written anew.
        target: The folder that shall hold it, as ``results``.

    Returns:
        The study's folder there.

    Raises:
        NMoEError: It cannot be written.
    """
    study = findings.study
    if findings.policies:
        refuse_more_bytes(findings.outcomes)
    place = target / study.name
    if place.resolve() == (runs / study.name).resolve():
        write_text(place / "table.json", findings_to_json(findings))
        return place
    with all_or_none(place, last="table.json") as new:
        if (place / RUNS).is_file():  # what is published already stands there, too
            write_text(new / RUNS, read_text(place / RUNS))
        first = True
        judged = [row for row in findings.shown if row.test == VALIDATION]
        for one in findings.outcomes:
            own = one.run.place.parts[0] == study.name  # others are published with their study
            there = one.path is not None and one.path.resolve() == target.resolve() / one.run.place
            if own and there:
                first = False
            elif own and one.results is not None and one.path is not None:
                kept = bool(findings.policies)  # what their tables and figures are made from
                publish_run(one.path, new / one.run.variant, clients=False, routing=False,
                            partition=first,  # an example
                            rounds=kept,
                            tests=findings.tells_tests_of(one.run),
                            validation={row.gate for row in judged},
                            metrics={row.metric for row in judged})  # fmt: skip
                first = False
        if findings.policies:
            _publish_policies(_finished_in(place, new), place, new)
        write_text(new / "table.json", findings_to_json(findings))
    return place


def _publish_policies(finished: Sequence[Path], place: Path, new: Path) -> None:
    """Draw what is kept of them: it can be drawn again. Of figures that are there, these alone."""
    there = {path.name for path in place.glob("*.webp")}
    with canvas.resolution(PUBLISHED_DOTS):
        for path in draw_policies(finished, new):
            picture = path.with_suffix(".webp")
            if picture.name in there or not there:
                write_bytes(picture, small_picture(path))
            path.unlink()


def _finished_in(*studies: Path) -> list[Path]:
    """The runs that are published of a study, by name; a later folder's replace an earlier's."""
    found = {
        path.parent.relative_to(study): path.parent
        for study in studies
        for path in study.glob("*/seed-*/results.json")
    }
    return [found[name] for name in sorted(found)]


def publish_run(
    run: Path,
    variant: Path,
    *,
    figures: Sequence[str] = (),
    rounds: bool = False,
    clients: bool = True,
    routing: bool = True,
    partition: bool = True,
    tests: bool = True,
    validation: Collection[str] | None = None,
    metrics: Collection[str] | None = None,
) -> Path:
    """Copy a finished run into ``variant/seed-N``; returns that folder.

    Args:
        run: A run folder with results.
        variant: Folder to write below, ``results/<study>/<variant>``.
        figures: Names of the run's own figures to keep, without suffix.
        rounds: Keep the rounds, too; figures that are drawn over rounds keep them anyway.
        clients: Keep every client's own accuracy, or its bits per byte.
        routing: Keep who asked whom.
        partition: Keep who holds how much of each class.
        tests: Keep what tests say; without, what validation data says alone.
        validation: Gates whose rows of validation data are kept; None: all.
        metrics: What is kept of a row where tests are not; None: all.
    """
    settings = Config.load(run)
    origin = read_origin(run)
    config = portable(tomllib.loads(settings.to_toml()), origin.pop("samples", None))
    target = variant / f"seed-{config['run']['seed']}"
    for told in (origin, origin.get("stage-1", {})):
        if "revision" in (told.get("git") or {}):
            told["git"]["revision"] = told["git"]["revision"][:_REVISION]
        if "started" in told:
            told["started"] = told["started"][:_DATE]
        told.get("machine", {}).pop("os", None)
    if "stage-1" in origin:
        origin["stage-1"]["from"] = _named_stage(Path(origin["stage-1"]["from"]))
    keep_begun(target, config, origin)
    if (run / "results.json").is_file():
        results = read_results(run / "results.json")
        if not tests:
            results = without_tests(results)
            if metrics is not None:
                others = set(ROW_METRICS).difference(metrics)
                results["rows"] = [
                    {k: v for k, v in row.items() if k not in others} for row in results["rows"]
                ]
        if validation is not None:
            results["rows"] = [
                row
                for row in results["rows"]
                if row["test"] != VALIDATION or row["gate"] in validation
            ]
        kept = _kept_results(results, clients=clients, routing=routing)
        if not partition:
            kept.pop("partition", None)
        kept["rows"] = _beside(settings, kept["rows"])
        write_text(target / "results.json", lines_of_json(said_once(kept)))
    if rounds or _OVER_ROUNDS.keys() & set(figures):
        kept_lines = kept_rounds(run / "rounds.jsonl", figures=figures, tests=tests)
        told = (json.dumps(one, separators=(",", ":")) + "\n"
                for one in rounds_by_stage(list(kept_lines)))  # fmt: skip
        write_text(target / "rounds.jsonl", "".join(told))
    for name, picture in (small_figures(target, figures) if figures else {}).items():
        write_bytes(target / "figures" / f"{name}.webp", picture)
    return target


def _beside(settings: Config, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what the settings say, which are published, too."""
    flat = settings.flat()
    told = {name: flat[key] for name, key in BY_SETTINGS.items()}
    return [
        {name: value for name, value in row.items() if name not in told or value != told[name]}
        for row in rows
    ]


def _named_stage(folder: Path) -> str:
    """The folder of a shared stage 1, or of a head after it, without where it lay.

    >>> _named_stage(Path("/runs/stage-1/fedsc-1a2b")), _named_stage(Path("/x/fedsc-1a2b/head/3c"))
    ('stage-1/fedsc-1a2b', 'stage-1/fedsc-1a2b/head/3c')
    """
    kept = 3 if folder.parent.name == HEAD_STAGE else 1
    return "/".join(("stage-1", *folder.parts[-kept:]))


def _named_run(folder: Path) -> str:
    """The folder of a run, of a study's with study and variant, without where it lay.

    >>> _named_run(Path("/x/cifar10")), _named_run(Path("/x/fedsc/own/seed-1"))
    ('runs/cifar10', 'runs/fedsc/own/seed-1')
    """
    kept = 3 if folder.name.startswith("seed-") else 1
    return "/".join(("runs", *folder.parts[-kept:]))


def _kept_results(results: dict[str, Any], *, clients: bool, routing: bool) -> dict[str, Any]:
    """The results with no more than tables need, and as many digits."""
    kept: dict[str, Any] = rounded(results, KEPT_DIGITS)
    for row in kept["rows"]:
        if (worst := worst_client(row)) is not None:
            row["worst_client"] = worst
        each = row.pop("per_client", None) or {}
        told = {metric: each[metric] for metric in _OF_CLIENTS if metric in each}
        if clients and told:
            row["per_client"] = told
    if not routing:
        kept.pop("routing", None)
    if "stages" in kept:
        kept["stages"] = {n: cost for n, cost in kept["stages"].items() if n not in _ASKED}
    return kept


def portable(
    config: dict[str, Any], samples: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """The configuration without folders of the machine it ran on, and without what is as it comes.

    The seed stays in any case. ``nmoe config RUN_DIR`` prints it whole again. Of a folder of data
    the name stays; a copy of CIFAR-10 is called what the hub calls it.

    Args:
        config: The configuration, as tables.
        samples: How many samples each class has, by split; None: the run has not noted it.
    """
    config["run"]["out"] = ""
    config["data"]["cache-dir"] = ""
    dataset = Path(config["data"]["dataset"])
    if dataset.is_absolute():
        config["data"]["dataset"] = (
            "uoft-cs/cifar10" if samples == _CIFAR10 else f"./{dataset.name}"
        )
    if start := config["extractor"].get("start"):
        config["extractor"]["start"] = _named_run(Path(start))
    for section, key, prefix in (
        ("extractor", "weights", ""),
        ("extractor", "backbone", TRANSFORMERS),
        ("text", "tokenizer", ""),
        ("alignment", "trace", ""),
    ):
        given = config.get(section, {}).get(key, "")
        place = Path(given.removeprefix(prefix))
        if given.startswith(prefix) and place.is_absolute():
            config[section][key] = f"{prefix}./{place.name}"
    usual = tomllib.loads(Config().to_toml())
    told = {
        name: {
            key: value
            for key, value in section.items()
            if value != usual[name].get(key) or (name, key) == ("run", "seed")
        }
        for name, section in config.items()
    }
    return {name: section for name, section in told.items() if section}


def kept_rounds(
    path: Path, *, figures: Sequence[str] = (), tests: bool = True
) -> Iterator[dict[str, Any]]:
    """What is kept of a ``rounds.jsonl``: some rounds, and what figures need of them."""
    records = read_rounds(path) if tests else rounds_without_tests(read_rounds(path))
    needs = [need for name, need in _OVER_ROUNDS.items() if name in figures]
    for place in _some(records, _DRAWN if needs else _KEPT):
        found = records[place]
        curves = _CURVES.get(found["stage"])
        columns = (*_COLUMNS, *(_TRAFFIC if curves else ()))
        line = {name: found[name] for name in columns if found.get(name) is not None}
        line["metrics"] = {
            name: value
            for name, value in (found["metrics"] or {}).items()
            if (not curves or name in curves) and (not needs or any(need(name) for need in needs))
        }
        if line["metrics"]:
            yield rounded(line, _OF_ROUNDS)


def _some(records: Sequence[dict[str, Any]], most: int) -> list[int]:
    """Places of at most ``most`` records of each stage, from the last one back."""
    stages: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        if record["metrics"]:
            stages[record["stage"]].append(place)
    kept = set()
    for places in stages.values():
        kept |= set(places[:: -max(1, -(-len(places) // most))])
    return sorted(kept)


def small_figures(run: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Figures of a run by name, drawn from what its folder holds and as small as pages need them.

    Raises:
        NMoEError: It has no such figure, or none can be drawn.
    """
    with tempfile.TemporaryDirectory() as folder, canvas.resolution(PUBLISHED_DOTS):
        drawn = {path.stem: path for path in draw_figures(run, Path(folder))}
        if absent := [name for name in names if name not in drawn]:
            raise NMoEError(f"{run} has no figure {absent[0]}; allowed: {', '.join(drawn)}")
        return {name: small_picture(drawn[name]) for name in names}


def small_picture(figure: Path) -> bytes:
    """A figure as a WebP of few colours: a quarter of its bytes as PNG, and the same to the eye.

    Raises:
        NMoEError: It is missing, or no picture.
    """
    try:
        with Image.open(figure) as image:
            drawn = image.convert("RGB")
    except OSError as error:
        raise NMoEError(f"cannot read the figure {figure}: {error}") from None
    few = drawn.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    paper = (np.asarray(drawn) == 255).all(axis=-1)  # else it may become nearly white
    looks = np.where(paper[..., None], np.uint8(255), np.asarray(few.convert("RGB")))
    data = io.BytesIO()
    Image.fromarray(looks).save(data, "WEBP", lossless=True, quality=100, method=6)
    return data.getvalue()
