"""``nmoe run``: one recipe from data to results, on the engine of choice."""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

from nmoe_flower.cli.data import open_data, remember_data
from nmoe_flower.config import Config
from nmoe_flower.data import ImageData, usage, with_features
from nmoe_flower.engine import InProcessGrid, require_ray, run_simulation, write_app
from nmoe_flower.engine.signals import interruptible
from nmoe_flower.errors import EngineError, LockedError
from nmoe_flower.lock import locked
from nmoe_flower.progress import Follower, Progress, make_progress
from nmoe_flower.rehearsal import rehearse
from nmoe_flower.results import RunFolder
from nmoe_flower.summary import draw, summary_json, summary_lines
from nmoe_flower.tracking import TensorBoard, require_tensorboard

__all__ = ["run", "usable_cores"]

_CLIENT_APP = "nmoe_flower.client_app:app"
_PATHS = (
    ("data", "dataset"),
    ("data", "cache-dir"),
    ("extractor", "start"),
    ("alignment", "trace"),
)


def run(args: argparse.Namespace) -> int:
    """Run or resume; returns the exit code.

    Raises:
        NMoEError: The configuration, the data, the folder or the engine failed.
    """
    started = time.monotonic()
    if args.engine == "ray":
        require_ray()
    if args.tensorboard:
        require_tensorboard()
    progress = make_progress(args.format, sys.stdout)
    folder = None
    with ExitStack() as held:
        try:
            with interruptible():
                folder = (_resumed if args.resume else _begun)(held, args, progress)
                if args.tensorboard:
                    progress = _tracked(folder.path, progress)
                _train(args, folder, progress)
        except (KeyboardInterrupt, SystemExit) as stop:
            progress.close()
            print(f"nmoe: interrupted{_saved(folder) if folder else ''}", file=sys.stderr)
            return stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
        finally:
            progress.close()
        if not folder.results_path.is_file():
            raise EngineError(f"the run ended without results: {folder.results_path} is missing")
        figures = [] if args.no_figures else draw(folder, _complain)
    seconds = time.monotonic() - started
    if args.format == "json":
        print(summary_json(folder, seconds))
    else:
        print("", *summary_lines(folder, figures, seconds), sep="\n")
    return 0


def _saved(folder: RunFolder) -> str:
    """Where the run will go on, and how."""
    hint = f"; resume with: nmoe run --resume {folder.path}"
    saved = folder.checkpoints.latest()
    if saved is None:
        return hint
    stage, current = saved.state["stage"], saved.state["round"]
    done = f"round {current} of {stage}" if current else str(stage).removesuffix("/done")
    return f"; saved after {done}{hint}"


def _complain(text: str) -> None:
    print(f"nmoe: {text}", file=sys.stderr)


def _tracked(path: Path, progress: Progress) -> Progress:
    return TensorBoard(path / "tensorboard", progress)


def _resumed(held: ExitStack, args: argparse.Namespace, progress: Progress) -> RunFolder:
    """A run that is there, held until ``held`` closes; it may have been moved."""
    path = args.resume.expanduser()
    RunFolder.resume(path)  # a folder without a run is refused before anything is written there
    path = path.resolve()
    held.enter_context(locked(path))
    folder = RunFolder.resume(path)
    config = Config.load(path / "config.toml", _overrides(args))
    folder.check_config(config)
    config = _placed(config, path)
    if not folder.results_path.is_file():
        _rehearsed(config, progress, began=folder)
    return RunFolder(path, config)


def _begun(held: ExitStack, args: argparse.Namespace, progress: Progress) -> RunFolder:
    """A new run, held until ``held`` closes; all that can be known is checked before."""
    overrides = _overrides(args)
    if args.name is not None:
        overrides.append(f"run.name={json.dumps(args.name)}")
    config = Config.load(args.recipe, overrides)
    root = Path(args.out or config.run.out or "runs").expanduser().resolve()
    chosen = "name" in config.run.model_fields_set
    name = config.run.name if chosen else _name_of(args.recipe)
    config = _placed(config, root / name)
    data = _rehearsed(config, progress)
    path = _claimed(held, root, name, fixed=chosen or args.overwrite)
    config = with_features(_placed(config, path), data)
    folder = RunFolder.create(path, config, overwrite=args.overwrite)
    remember_data(folder, data)
    return folder


def _rehearsed(config: Config, progress: Progress, *, began: RunFolder | None = None) -> ImageData:
    """Open the data, tell what of it is left out, and try all that can be tried without a run."""
    data, clients = open_data(config, progress, began=began)
    for part in usage(config, data, clients):
        if part.used < part.total:
            progress.message(f"note: {part}")
    if began is not None and RunFolder.has_trained(began.path):  # what it started from may be gone
        config = Config.parse({**config.flat(), "extractor.start": ""})
    rehearse(config, data, clients)
    return data


def _claimed(held: ExitStack, root: Path, name: str, *, fixed: bool) -> Path:
    """The folder ``name``, or the first free one of ``name``, ``name-2``, ... unless it is fixed.

    Raises:
        LockedError: The name is fixed, and another process works there.
    """
    if fixed:
        held.enter_context(locked(root / name))
        return root / name
    for number in count(1):
        path = root / (name if number == 1 else f"{name}-{number}")
        if _is_free(path):
            with ExitStack() as attempt, suppress(LockedError):
                attempt.enter_context(locked(path))
                if _is_free(path):
                    held.push(attempt.pop_all())
                    return path
    raise AssertionError("numbers do not end")


def _is_free(path: Path) -> bool:
    return (path.is_dir() or not path.exists()) and not RunFolder.has_trained(path)


def _name_of(recipe: Path | None) -> str:
    """A run's name if nobody chose one: the recipe's, in letters that any file system takes."""
    words = re.findall(r"[A-Za-z0-9._]+", recipe.stem) if recipe is not None else []
    return "-".join(words).strip("-._")[:64] or Config().run.name


def _overrides(args: argparse.Namespace) -> list[str]:
    seed = [] if args.seed is None else [f"run.seed={args.seed}"]
    return [*args.overrides, *seed]


def _placed(config: Config, path: Path) -> Config:
    """The configuration of a run in ``path``, which names all it reads with absolute paths."""
    values = config.model_dump(by_alias=True)
    values["run"] |= {"out": str(path.parent), "name": path.name}
    for section, key in _PATHS:
        values[section][key] = _absolute(values[section][key])
    return Config.parse(values)


def _absolute(name: str) -> str:
    """An existing file or folder by its full path, because workers may start elsewhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name not in ("", "digits") and path.exists() else name


def _train(args: argparse.Namespace, folder: RunFolder, progress: Progress) -> None:
    progress.message(f"run folder {folder.path}")
    for note in folder.config.advice():
        progress.message(f"note: {note}")
    if folder.results_path.is_file():
        progress.message("this run is finished already")
        return
    workers = usable_cores() if args.workers is None else args.workers
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
            environment={CALLER_TELLS: "1", "PYTHONPATH": _path()},
        )


def _path() -> str:
    """Where programs that start elsewhere find code of one's own: as here."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path.cwd())]))


def _gpu_share(device: str, workers: int) -> float:
    """What of a GPU each actor may take, so that all fit; Ray hides the GPU from a share of 0."""
    if not device.startswith("cuda"):
        return 0.0
    import torch

    return min(1.0, int(10_000 * max(torch.cuda.device_count(), 1) / workers) / 10_000)


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
