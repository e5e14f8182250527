"""Run every policy over seeds and report them side by side: on CIFAR-10, or on the digits.

    nmoe run experiments/cifar10-fedsc-quick.toml    # stage 1: the extractor all runs stand on
    python -m experiments.publish alignment --start runs/cifar10-fedsc-quick --out runs/alignment
    python -m experiments.publish alignment ... --second    # two classes, capacities 1 to 4
    python -m experiments.publish alignment ... --publish results/alignment-one-class
    python -m experiments.publish alignment --digits --seeds 0 1 2 --out runs/digits \
      --policies joint balanced greedy random single single-same-bytes

Those of CIFAR-10 are of experiments/cifar10-alignment.toml. On the digits every policy has the same
capacity, so the same experts trained and the same bytes; a single model, which a client trains
whole, moves less in a round: single-same-bytes trains until it has moved as much.

Finished runs are kept, broken ones begun anew. Runs of a seed share the latents of the fixed
extractor, which depend on seed and data only. --publish copies what the documentation shows, unless
a client got or sent more than extractor, gate and its experts weigh, and one per cent.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.publish.figures import small
from experiments.publish.run import publish
from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.files import write_bytes
from nmoe_flower.report import alignment_table, draw_alignment, load_runs, most_bytes
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import execute

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "experiments" / "cifar10-alignment.toml"
SINGLE = ["alignment.experts=1"]
ONE_STEP = [
    *SINGLE,
    "alignment.local-steps=1",
    "alignment.batch-size=2250",
    "alignment.learning-rate=0.5",
]
# All see the same usage, so clients that collide flock together. With the recipe's z-scores they
# then all go back: what is fit stays so out of proportion. Unscaled fitness lets them part.
BALANCED = [
    "alignment.policy=balanced",
    "alignment.scale=none",
    "alignment.usage-weight=0.2",
    "alignment.exploration=0.03",
    "alignment.rate=0.6",
]
POLICIES = {
    "joint": [], "random": ["alignment.policy=random"], "greedy": ["alignment.policy=greedy"],
    "balanced": BALANCED, "oracle": ["alignment.policy=oracle"],
    "single": SINGLE, "single-one-step": ONE_STEP,
    "single-same-bytes": [*SINGLE, "alignment.capacity=1", "alignment.rounds=29"],
}  # fmt: skip
SECOND = ["data.classes-per-client=2", "alignment.capacity=1,2,3,4,1,2,1,3,1,2"]
DIGITS = ["run.system=aligned", "data.scheme=pathological", "alignment.rounds=20"]
DIGITS += ["alignment.capacity=1,2"]
MOST_BYTES = 1.01


def train(
    folder: Path, recipe: Path | None, settings: list[str], seed: int, latents: Path | None
) -> None:
    """One run in this process: starting a new one each time would cost more than some policies."""
    if (folder / "results.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    place = [f"run.out={json.dumps(str(folder.parent))}", f"run.name={folder.name}"]
    config = Config.load(recipe, [*settings, *place, f"run.seed={seed}"])
    run = RunFolder.create(folder, config)
    if latents is not None:
        for file in latents.glob("clients/*/aligned-[le]*.safetensors"):
            target = folder / file.relative_to(latents)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    with InProcessGrid(app, config.data.num_clients, run_config=config.flat()) as grid:
        execute(grid, run, on_round=lambda record: tell(folder.name, record))


def tell(name: str, record: Mapping[str, Any]) -> None:
    if record["stage"] == "alignment-test":
        print(f"{name} {record['round']} {record['metrics']['accuracy-iid']:.3f}", flush=True)


def publish_all(runs: list[Path], out: Path, target: Path) -> None:
    """What the runs left, the audit of one of them, table and figures."""
    for finished in load_runs(runs):
        if not most_bytes(finished) <= MOST_BYTES:
            raise SystemExit(f"{finished.path}: bytes / part is {most_bytes(finished):.4f}")
    for run in runs:
        config = Config.load(run / "config.toml")
        variant = target / run.name.removesuffix(f"-{config.run.seed}")
        publish(run, variant, rounds=True, audit=run.name == "joint-0")
    shutil.copy(out / "table.txt", target / "table.txt")
    for name in ("assignments.png", "alignment.png"):
        write_bytes(target / name, small(out / name))


def main(argv: Sequence[str]) -> int:
    """Train what is missing, tabulate, draw, publish."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.publish alignment", description=__doc__, formatter_class=kind
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--start", type=Path, help="run whose extractor to take (CIFAR-10)")
    parser.add_argument("--digits", action="store_true", help="the digits, all of it trained")
    parser.add_argument("--second", action="store_true", help="two classes, capacities 1-4")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--publish", type=Path)
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.start is None) != args.digits:
        parser.error("give --start RUN_DIR, or --digits")
    if args.digits:
        recipe, common = None, [*DIGITS, *args.set]
    else:
        start = f"extractor.start={json.dumps(str(args.start.resolve()))}"
        recipe, common = RECIPE, [start, *(SECOND if args.second else []), *args.set]
    runs = []
    for seed in args.seeds:
        first = None
        for policy in args.policies:
            folder = args.out / f"{policy}-{seed}"
            train(folder, recipe, [*common, *POLICIES[policy]], seed, first)
            first = first or (None if args.digits else folder)
            runs.append(folder)
    finished = load_runs(runs)
    table = alignment_table(finished)
    (args.out / "table.txt").write_text(table.rstrip() + "\n", encoding="utf-8")
    print(table)
    draw_alignment(finished, args.out)
    if args.publish:
        publish_all(runs, args.out, args.publish)
    return 0
