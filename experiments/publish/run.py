"""Copy what is kept of a finished run into the repository: small files, no paths of the machine.

    python -m experiments.publish run runs/cifar10-quick fedce/quick [--figures accuracy rounds]

``results/<study>/<variant>/seed-N/`` gets configuration and provenance; the results, per client
with six significant digits; and of ``rounds.jsonl`` what a figure needs: metrics, bytes and seconds
of at most fifty rounds of each stage, the last among them, with five digits.
"""

import argparse
import json
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from experiments.publish.published import RESULTS

_KEPT = 50  # rounds of a stage
_COLUMNS = ("stage", "round", "metrics", "bytes_up", "bytes_down", "seconds")


def publish(run: Path, variant: Path, *, figures: Sequence[str] = (), audit: bool = False) -> Path:
    """Copy a finished run into ``variant/seed-N``; returns that folder.

    Args:
        run: A run folder with results.
        variant: ``results/<study>/<variant>``.
        figures: Names of the figures that pages show, without suffix.
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
    if (run / "rounds.jsonl").is_file():
        _write(
            target / "rounds.jsonl",
            "".join(_lines(run / "rounds.jsonl", (*_COLUMNS, "audit") if audit else _COLUMNS)),
        )
    for name in figures:
        (target / "figures").mkdir(exist_ok=True)
        shutil.copy(run / "figures" / f"{name}.png", target / "figures" / f"{name}.png")
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


def _lines(path: Path, columns: Sequence[str]) -> Iterable[str]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    stages: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        if record["metrics"]:
            stages[record["stage"]].append(place)
    kept = set()
    for places in stages.values():
        step = max(1, -(-len(places) // _KEPT))
        kept |= set(places[::-step])  # from the last one back
    for place in sorted(kept):
        found = records[place]
        line = {name: found[name] for name in columns if found.get(name) is not None}
        yield json.dumps(rounded(line, 5)) + "\n"


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
    args = parser.parse_args(argv)
    print(publish(args.run, RESULTS / args.variant, figures=args.figures))
    return 0
