"""``nmoe run``: one recipe from data to results, on the engine of choice."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from nmoe_flower.cli.data import open_data
from nmoe_flower.config import Config
from nmoe_flower.data import usage
from nmoe_flower.engine import InProcessGrid, run_simulation, write_app
from nmoe_flower.engine.signals import interruptible
from nmoe_flower.errors import EngineError
from nmoe_flower.progress import Follower, Progress, make_progress
from nmoe_flower.results import RunFolder
from nmoe_flower.summary import draw, summary_json, summary_lines

__all__ = ["run"]

_CLIENT_APP = "nmoe_flower.client_app:app"


def run(args: argparse.Namespace) -> int:
    """Run or resume; returns the exit code.

    Raises:
        NMoEError: The configuration, the data, the folder or the engine failed.
    """
    started = time.monotonic()
    path, config = _configure(args)
    progress = make_progress(args.format, sys.stdout)
    begun = bool(args.resume)
    try:
        with interruptible():
            data, clients = open_data(config, progress)
            for part in usage(config, data, clients):
                if part.used < part.total:
                    progress.message(f"note: {part}")
            if not args.resume:
                RunFolder.create(path, config, overwrite=args.overwrite)
                begun = True
            if args.tensorboard:
                progress = _tracked(path, progress)
            _train(args, RunFolder(path, config), progress)
    except (KeyboardInterrupt, SystemExit) as stop:
        progress.close()
        hint = f"; resume with: nmoe run --resume {path}" if begun else ""
        print(f"nmoe: interrupted{hint}", file=sys.stderr)
        return stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
    finally:
        progress.close()
    folder = RunFolder(path, config)
    if not folder.results_path.is_file():
        raise EngineError(f"the run ended without results: {folder.results_path} is missing")
    figures = [] if args.no_figures else draw(folder, _complain)
    seconds = time.monotonic() - started
    if args.format == "json":
        print(summary_json(folder, seconds))
    else:
        print("", *summary_lines(folder, figures, seconds), sep="\n")
    return 0


def _complain(text: str) -> None:
    print(f"nmoe: {text}", file=sys.stderr)


def _tracked(path: Path, progress: Progress) -> Progress:
    from nmoe_flower.tracking import TensorBoard

    return TensorBoard(path / "tensorboard", progress)


def _configure(args: argparse.Namespace) -> tuple[Path, Config]:
    """The run folder and its configuration, which names that folder with absolute paths."""
    overrides = list(args.overrides)
    if args.seed is not None:
        overrides.append(f"run.seed={args.seed}")
    if args.resume:
        folder = RunFolder.resume(args.resume)
        config = Config.load(folder.path / "config.toml", overrides)
        folder.check_config(config)
        path = args.resume.expanduser().resolve()
    else:
        if args.name:
            overrides.append(f"run.name={json.dumps(args.name)}")
        config = Config.load(args.recipe, overrides)
        path = Path(args.out or config.run.out or "runs").expanduser().resolve() / config.run.name
    values = config.model_dump(by_alias=True)
    values["run"] |= {"out": str(path.parent), "name": path.name}
    for key in ("dataset", "cache-dir"):
        values["data"][key] = _absolute(values["data"][key])
    return path, Config.parse(values)


def _absolute(name: str) -> str:
    """An existing folder by its full path, because workers may start elsewhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name not in ("", "digits") and path.is_dir() else name


def _train(args: argparse.Namespace, folder: RunFolder, progress: Progress) -> None:
    progress.message(f"run folder {folder.path}")
    for note in folder.config.advice():
        progress.message(f"note: {note}")
    if folder.results_path.is_file():
        progress.message("this run is finished already")
        return
    workers = _cores() if args.workers is None else args.workers
    if args.engine == "ray":
        _train_with_ray(folder, progress, workers, resumed=bool(args.resume))
    else:
        _train_in_process(folder, progress, min(workers, folder.config.data.num_clients))


def _train_in_process(folder: RunFolder, progress: Progress, workers: int) -> None:
    from nmoe_flower.server_app import execute

    config = folder.config
    with InProcessGrid(
        _CLIENT_APP, config.data.num_clients, run_config=config.flat(), workers=workers
    ) as grid:
        execute(grid, folder, on_round=progress.update, on_answer=progress.answered)


def _train_with_ray(folder: RunFolder, progress: Progress, workers: int, *, resumed: bool) -> None:
    """The ServerApp in the SuperLink writes rounds.jsonl; this process follows it."""
    from nmoe_flower.server_app import CALLER_TELLS

    progress.message("starting a SuperLink and Ray (about 15 s)")
    log_path = folder.path / "simulation.log"
    with (
        tempfile.TemporaryDirectory(prefix="nmoe-app-") as parent,
        log_path.open("a", encoding="utf-8", buffering=1) as log,
    ):
        run_simulation(
            write_app(Path(parent, "app"), folder.config.flat()),
            num_supernodes=folder.config.data.num_clients,
            num_cpus=workers,
            gpus_per_client=_gpu_share(folder.config.run.device, workers),
            log=lambda line: print(line, file=log),
            on_tick=Follower(folder.rounds_path, progress, from_end=resumed),
            environment={CALLER_TELLS: "1"},
        )


def _gpu_share(device: str, workers: int) -> float:
    """What of a GPU each actor may take, so that all fit; Ray hides the GPU from a share of 0."""
    if not device.startswith("cuda"):
        return 0.0
    import torch

    return min(1.0, int(10_000 * max(torch.cuda.device_count(), 1) / workers) / 10_000)


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
