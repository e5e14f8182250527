"""Copy what is kept of a finished run into the repository: small files, no paths of the machine.

    python -m experiments.publish run runs/cifar10-quick fedce/quick [--figures accuracy rounds]

``results/<study>/<variant>/seed-N/`` gets configuration and provenance; the results, per client
with six significant digits; and, where a page shows how the run went, of ``rounds.jsonl`` what its
figures are drawn from, with five digits. ``--rounds`` keeps more of some: the metrics of at most
fifty rounds of each stage, the last among them.
"""

import argparse
import json
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from experiments.publish.figures import small
from experiments.publish.published import RESULTS
from nmoe_flower.files import write_bytes

_KEPT = 50  # rounds of a stage
_COLUMNS = ("stage", "round", "metrics")
_TRAFFIC = ("bytes_up", "bytes_down")
# Of the second system, what its curves are drawn from.
_CURVES = {
    "alignment": ("load-variation", "load-variation-total", "bytes-to-part", "elapsed-seconds"),
    "alignment-test": ("accuracy-iid",),
}
_OVER_ROUNDS: dict[str, Callable[[str], bool]] = {
    "rounds": lambda name: "loss" in name or "accuracy" in name,
    "representation": lambda name: name != "loss",
}


def publish(
    run: Path,
    variant: Path,
    *,
    figures: Sequence[str] = (),
    rounds: bool = False,
    audit: bool = False,
) -> Path:
    """Copy a finished run into ``variant/seed-N``; returns that folder.

    Args:
        run: A run folder with results.
        variant: Folder to write below, ``results/<study>/<variant>``.
        figures: Names of the figures that pages show, without suffix.
        rounds: Keep the rounds, too; figures that are drawn over rounds keep them anyway.
        audit: Keep who was assigned what in each round of the second system, too.
    """
    config = portable(tomllib.loads((run / "config.toml").read_text(encoding="utf-8")))
    target = variant / f"seed-{config['run']['seed']}"
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "config.toml", tomli_w.dumps(config))
    shutil.copy(run / "provenance.json", target / "provenance.json")
    if (run / "results.json").is_file():
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        for row in results["rows"]:
            row["per_client"] = rounded(row.get("per_client", {}), 6)
        results["routing"] = rounded(results.get("routing", {}), 6)
        _write(target / "results.json", table(results))
    if rounds or _OVER_ROUNDS.keys() & set(figures):
        kept = lines(run / "rounds.jsonl", figures=figures, audit=audit)
        _write(target / "rounds.jsonl", "".join(kept))
    for name in figures:
        (target / "figures").mkdir(exist_ok=True)
        picture = small(run / "figures" / f"{name}.png")
        write_bytes(target / "figures" / f"{name}.png", picture)
    return target


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without folders of the machine it ran on."""
    config["run"]["out"] = ""
    config["data"]["cache-dir"] = ""
    if Path(config["data"]["dataset"]).is_absolute():
        config["data"]["dataset"] = "uoft-cs/cifar10"
    if start := config["extractor"].get("start"):
        config["extractor"]["start"] = f"runs/{Path(start).name}"
    return config


def rounded(value: Any, digits: int) -> Any:
    """Every float with that many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, list):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    return value


def table(results: dict[str, Any]) -> str:
    """JSON with one line for each row of a list and each value of a table: changes can be read."""
    parts = []
    for key, value in results.items():
        if isinstance(value, list):
            inner = ",\n".join(f"    {json.dumps(row)}" for row in value)
            text = f"[\n{inner}\n  ]"
        elif isinstance(value, dict):
            inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            text = f"{{\n{inner}\n  }}"
        else:
            text = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def lines(path: Path, *, figures: Sequence[str] = (), audit: bool = False) -> Iterator[str]:
    """What is kept of a ``rounds.jsonl``: all that the figures need, or without one, some of it."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    needs = [need for name, need in _OVER_ROUNDS.items() if name in figures]
    kept = range(len(records)) if needs else _some(records)
    for place in kept:
        found = records[place]
        curves = _CURVES.get(found["stage"])
        columns = (*_COLUMNS, *(_TRAFFIC if curves else ()), *(("audit",) if audit else ()))
        line = {name: found[name] for name in columns if found.get(name) is not None}
        line["metrics"] = {
            name: value
            for name, value in (found["metrics"] or {}).items()
            if (not curves or name in curves) and (not needs or any(need(name) for need in needs))
        }
        if line["metrics"]:
            yield json.dumps(rounded(line, 5)) + "\n"


def _some(records: Sequence[dict[str, Any]]) -> list[int]:
    """Places of at most `_KEPT` records of each stage, from the last one back."""
    stages: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        if record["metrics"]:
            stages[record["stage"]].append(place)
    kept = set()
    for places in stages.values():
        kept |= set(places[:: -max(1, -(-len(places) // _KEPT))])
    return sorted(kept)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Publish one run."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.publish run", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("variant", metavar="STUDY/VARIANT")
    parser.add_argument("--figures", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--rounds", action="store_true", help="keep rounds that no figure needs")
    args = parser.parse_args(argv)
    print(publish(args.run, RESULTS / args.variant, figures=args.figures, rounds=args.rounds))
    return 0
