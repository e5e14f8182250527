"""One recipe from data to results: what ``nmoe run`` does, and what a notebook calls."""

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from nmoe_flower.commands import command_line
from nmoe_flower.config import Config, Override
from nmoe_flower.data import ImageData, coverage, with_features
from nmoe_flower.data.text import TextData
from nmoe_flower.engine import (
    Cluster,
    ForkServer,
    InProcessGrid,
    cluster_at,
    interruptible,
    named_address,
    require_ray,
    run_simulation,
    write_app,
)
from nmoe_flower.errors import ConfigError, EngineError, LockedError
from nmoe_flower.lock import locked
from nmoe_flower.machine import usable_cores
from nmoe_flower.own_code import load_own
from nmoe_flower.progress import Follower, Format, Progress, make_progress
from nmoe_flower.recipes import find_recipe
from nmoe_flower.rehearsal import rehearse, rehearse_language
from nmoe_flower.rendezvous import require_rendezvous
from nmoe_flower.results import RunFolder, check_place, placed, shadowed
from nmoe_flower.running_data import open_data, open_text, remember_data
from nmoe_flower.summary import draw, summary_lines
from nmoe_flower.tracking import Track, Tracked, Tracker

__all__ = ["CLIENT_APP", "Engine", "RecipeLike", "RunResult", "run", "run_in"]

Engine = Literal["inprocess", "ray"]
RecipeLike = str | Path | Config | Mapping[str, Any]

CLIENT_APP = "nmoe_flower.client_app:app"
_MOST_WORKERS = 4096
_TURNS = "note: engine.stack = {}: clients train together {}; here each trains alone"


@dataclass(frozen=True)
class RunResult:
    """A finished run. Printed, it is the table that ``nmoe run`` ends with.

    Attributes:
        folder: The run folder: ``folder.path``, ``folder.config``, ``folder.rounds()``.
        results: What ``results.json`` holds.
        figures: The figures that were drawn.
        notes: What could not be done beside the run, in words: figures without matplotlib, a
            tracker that failed after the last round.
        seconds: How long it took, from the first check to the last figure.
    """

    folder: RunFolder
    results: dict[str, Any]
    figures: list[Path]
    notes: list[str]
    seconds: float

    def __getitem__(self, key: str) -> Any:
        """A part of the results: ``result["rows"]`` is ``result.results["rows"]``."""
        return self.results[key]

    @property
    def path(self) -> Path:
        """The run folder's place, absolute."""
        return self.folder.path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat row for every gate and test, as ``pandas.DataFrame`` takes them.

        What each client scored is in ``results["rows"]``, under ``per_client``.
        """
        return [{k: v for k, v in row.items() if k != "per_client"} for row in self.results["rows"]]

    def __str__(self) -> str:
        return "\n".join([*self.notes, *summary_lines(self.folder, self.figures, self.seconds)])

    def __repr__(self) -> str:
        return f"RunResult({str(self.path)!r})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows of it."""
        printer.text(repr(self) if cycle else str(self))


def run(
    recipe: RecipeLike | None = None,
    *,
    set: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    engine: Engine = "inprocess",
    workers: int | None = None,
    ray_address: str | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    progress: Format | Progress | None = "auto",
    figures: bool = True,
    track: Track | str | Sequence[str | Tracker] = (),
    tensorboard: bool = False,
    **overrides: Any,
) -> RunResult:
    """Train and evaluate all stages of a recipe: the same folder and numbers as ``nmoe run``.

    Whatever stops it, Ctrl-C included, saves the last finished round; the text of the
    ``KeyboardInterrupt`` says how the run goes on.

    Args:
        recipe: Name of a recipe that comes along (``nmoe recipes``), a TOML file, a `Config`, or a
            mapping of keys, dotted or in tables: ``{"gate.rounds": 5}``, ``{"gate": {"rounds":
            5}}``. None: the digits, as ``nmoe run`` alone.
        set: Configuration keys that go before the recipe's: ``{"gate.rounds": 5}``, or
            ``["gate.rounds=5"]`` as on the command line.
        seed: Seed of every random choice, 0 to 2**32 - 1. None: that of the recipe (0).
        name: Name of the run folder, which must be free. None: that of the recipe, with a number
            if it is taken.
        out: Folder that run folders go to, made if missing. None: ``run.out``, or ``./runs``.
        engine: ``inprocess`` (client processes of this program) or ``ray`` (Flower's simulation,
            with the extra ``simulation``).
        workers: Client processes, 1 to 4096; 0: the clients run in this process (not with
            ``ray``). None: one per core, of all nodes on a cluster; 0 where ``engine.stack`` is
            set.
        ray_address: Ray cluster to run clients on, with ``engine="ray"``: ``auto`` (the one this
            machine is in), ``HOST:PORT`` of its head, or ``local`` (a Ray of this run's own). None:
            what the variable ``RAY_ADDRESS`` says, else ``local``.
        resume: Folder of a stopped run to go on with; it brings recipe, ``out`` and ``name``.
        overwrite: Delete the run that has this name.
        progress: ``auto`` (live on a terminal and in a notebook, else lines), ``text``, ``json``,
            an object of your own with the methods of ``nmoe_flower.progress.Progress``, or None:
            say nothing.
        figures: Draw the figures, if matplotlib (the extra ``report``) is installed.
        track: Trackers beside it: ``"tensorboard"``, ``"mlflow"``, ``"wandb"``, several of them,
            objects with the methods of `nmoe_flower.tracking.Tracker`, or a
            `nmoe_flower.tracking.Track`, which says more. One that fails never stops the run.
        tensorboard: Whether to add ``"tensorboard"`` to ``track``.
        **overrides: Configuration keys as arguments, section and key two underscores apart:
            ``gate__rounds=5``. They go before ``set``.

    Raises:
        NMoEError: One of the classes of `nmoe_flower.errors`: `ConfigError` for a key or an
            argument, `DataError` for the data, `LockedError` for a folder in which another process
            works, `CheckpointError` for what cannot be resumed, `RoundError` and `EngineError` for
            a run that could not go on.
        KeyboardInterrupt: Somebody stopped it.
    """
    started = time.monotonic()
    _check_call(recipe, out, name, engine, workers, ray_address, resume, overwrite)
    cluster = None
    if engine == "ray":
        require_ray()
        if (address := named_address(ray_address, os.environ)) is not None:
            cluster = cluster_at(address)
    tracking = Track.of(track)
    if tensorboard:
        tracking = Track.of(replace(tracking, trackers=["tensorboard", *tracking.trackers]))
    changes: list[Override] = list(set.items() if isinstance(set, Mapping) else set)
    changes += [(_key_of(argument), value) for argument, value in overrides.items()]
    if seed is not None:
        changes.append(("run.seed", seed))
    view = make_progress(progress) if progress is None or isinstance(progress, str) else progress
    folder, notes, drawn = None, list[str](), list[Path]()
    tracked = Tracked(tracking, complain=notes.append)
    with ExitStack() as held:
        try:
            with interruptible():
                crew = held.enter_context(closing(_Crew(engine, workers, cluster)))
                if resume is not None:
                    folder = _resumed(held, Path(resume), changes, view, crew)
                else:
                    named = [] if name is None else [("run.name", name)]
                    folder = _begun(
                        held, recipe, [*changes, *named], view, crew, out=out, overwrite=overwrite
                    )
                held.enter_context(tracked).begin(folder)
                _train(
                    folder,
                    tracked.beside(view, tell=None if progress is None else view.message),
                    crew,
                    resumed=resume is not None,
                )
        except KeyboardInterrupt as stop:
            stop.args = (_interrupted(folder),)
            raise
        except SystemExit as stop:  # whose argument is the exit code
            stop.add_note(_interrupted(folder))
            raise
        finally:
            view.close()
        if not folder.results_path.is_file():
            raise EngineError(f"the run ended without results: {folder.results_path} is missing")
        if figures:
            drawn = draw(folder, notes.append)
        tracked.finish(drawn)
    return RunResult(folder, folder.results(), drawn, notes, time.monotonic() - started)


def run_in(
    path: Path,
    config: Config,
    *,
    workers: int,
    view: Progress,
    begun: Callable[[RunFolder], object] = lambda folder: None,
    anew: bool = False,
    until: str = "",
    track: Track | None = None,
) -> RunFolder:
    """Run a configuration in a folder, or go on with what is there: what studies are made of.

    Rounds are saved as often as takes 2 % of the time, and the last one when something stops it.

    Args:
        path: The run folder, absolute.
        config: The configuration; ``run.name`` and ``run.out`` are those of the folder.
        workers: Client processes, 0 to 4096.
        view: Where the run reports to.
        begun: Called with the folder of a new run before it trains.
        anew: Delete the run that is there.
        until: Name of the stage to stop after; empty: the whole run.
        track: Trackers of the run; the view says what goes wrong with them.

    Raises:
        NMoEError: As `run` does.
    """
    tracked = Tracked(Track() if track is None else track, complain=view.message)
    with ExitStack() as held, interruptible():
        crew = held.enter_context(closing(_Crew("inprocess", workers)))
        if RunFolder.has_trained(path) and not anew:
            folder = _resumed(held, path, [], view, crew)
        else:
            settings: list[Override] = [("run.name", path.name)]
            folder = _begun(held, config, settings, view, crew, out=path.parent, overwrite=anew)
            begun(folder)
        held.enter_context(tracked).begin(folder)
        shown = tracked.beside(view, tell=view.message)
        _train(folder, shown, crew, resumed=False, until=until, soonest=0.0)
        if not until:
            drawn = draw(folder, view.message) if track and track.trackers else []
            tracked.finish(drawn)
    return folder


def _check_call(
    recipe: RecipeLike | None,
    out: str | Path | None,
    name: str | None,
    engine: str,
    workers: int | None,
    ray_address: str | None,
    resume: str | Path | None,
    overwrite: bool,
) -> None:
    if resume is not None and (recipe is not None or out or name or overwrite):
        raise ConfigError(
            "resume takes the configuration and the folder from the run: leave out recipe, out, "
            "name and overwrite"
        )
    if engine not in get_args(Engine):
        raise ConfigError(f"engine is {engine!r}; allowed: {', '.join(get_args(Engine))}")
    if ray_address is not None and engine != "ray":
        raise ConfigError(f"ray_address = {ray_address!r} needs engine 'ray', not {engine!r}")
    least = 1 if engine == "ray" else 0
    whole = isinstance(workers, int) and not isinstance(workers, bool)
    if workers is not None and not (whole and least <= workers <= _MOST_WORKERS):
        raise ConfigError(
            f"workers is {workers!r}; allowed: a whole number from {least} to {_MOST_WORKERS} with "
            f"engine {engine}, or None"
        )


def _key_of(argument: str) -> str:
    """``gate.local_steps`` for the argument ``gate__local_steps``."""
    key = argument.replace("__", ".", 1)
    if "." not in key:
        raise ConfigError(
            f"run() has no argument {argument!r}; a configuration key is written section__key, "
            "such as gate__rounds=5"
        )
    return key


def _interrupted(folder: RunFolder | None) -> str:
    """Where the run will go on, and how."""
    if folder is None:
        return "interrupted"
    hint = f"resume with: {command_line('nmoe', 'run', '--resume', folder.path)}"
    saved = folder.checkpoints.latest()
    if saved is None:
        return f"interrupted; {hint}"
    stage, current = saved.state["stage"], saved.state["round"]
    done = f"round {current} of {stage}" if current else str(stage).removesuffix("/done")
    return f"interrupted; saved after {done}; {hint}"


@dataclass
class _Crew:
    """Where the clients run.

    Attributes:
        engine: One of `Engine`.
        workers: Processes, as `run` takes them.
        cluster: The Ray cluster, if a lasting one.
        forks: What worker processes are forked from, once it was started.
    """

    engine: Engine
    workers: int | None
    cluster: Cluster | None = None
    forks: ForkServer | None = None

    def size(self, config: Config) -> int:
        """Worker processes of this program."""
        if self.engine == "ray":
            return 0
        usual = 0 if config.engine.stack > 1 else usable_cores()
        return min(usual if self.workers is None else self.workers, config.data.num_clients)

    def begin(self, config: Config) -> None:
        """Start what takes seconds, while this process looks at data and networks."""
        if self.size(config) > 1 and ForkServer.works_here():
            self.forks = ForkServer(CLIENT_APP)

    def close(self) -> None:
        """End what was started, if it was not needed."""
        if self.forks is not None:
            self.forks.close()


def _resumed(
    held: ExitStack, path: Path, overrides: Sequence[Override], view: Progress, crew: _Crew
) -> RunFolder:
    """A run that is there, held until ``held`` closes; it may have been moved."""
    path = path.expanduser()
    RunFolder.resume(path)  # a folder without a run is refused before anything is written there
    path = path.resolve()
    held.enter_context(locked(path))
    folder = RunFolder.resume(path)
    config = Config.load(path, overrides)
    folder.check_config(config)
    config = placed(config, path)
    if not folder.results_path.is_file():
        crew.begin(config)
        _rehearsed(config, view, began=folder)
    return RunFolder(path, config)


def _begun(
    held: ExitStack,
    recipe: RecipeLike | None,
    overrides: Sequence[Override],
    view: Progress,
    crew: _Crew,
    *,
    out: str | Path | None,
    overwrite: bool,
) -> RunFolder:
    """A new run, held until ``held`` closes; all that can be known is checked before."""
    source = find_recipe(recipe) if isinstance(recipe, str) else recipe
    config = Config.load(source, overrides)
    for note in shadowed(config):
        view.message(f"note: {note}")
    root = Path(out or config.run.out or "runs").expanduser().resolve()
    chosen = "name" in config.run.model_fields_set
    name = config.run.name if chosen else _name_of(source)
    if chosen or overwrite:  # looked at before data is opened, which may take minutes
        RunFolder.check_free(root / name, overwrite=overwrite)
    else:
        check_place(root)
    config = placed(config, root / name)
    crew.begin(config)
    data = _rehearsed(config, view)
    path = _claimed(held, root, name, fixed=chosen or overwrite)
    config = placed(config, path)
    if isinstance(data, ImageData):
        config = with_features(config, data)
    folder = RunFolder.create(path, config, overwrite=overwrite)
    remember_data(folder, data)
    return folder


def _rehearsed(
    config: Config, view: Progress, *, began: RunFolder | None = None
) -> ImageData | TextData:
    """Open the data, tell what of it is left out, and try all that can be tried without a run."""
    if config.engine.stack > 1:
        require_rendezvous()
    for key, name in config.own_names():
        load_own(key, name)
    if config.run.system == "language":
        text = open_text(config, view, began=began)
        rehearse_language(config, text)
        return text
    data, clients = open_data(config, view, began=began)
    for part in coverage(config, data, clients):
        if part.used < part.total:
            view.message(f"note: {part}")
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


def _name_of(recipe: Path | Config | Mapping[str, Any] | None) -> str:
    """A run's name if nobody chose one: its file's, in letters that any file system takes."""
    words = re.findall(r"[A-Za-z0-9._]+", recipe.stem) if isinstance(recipe, Path) else []
    return "-".join(words).strip("-._")[:64] or Config().run.name


def _train(
    folder: RunFolder,
    view: Progress,
    crew: _Crew,
    *,
    resumed: bool,
    until: str = "",
    soonest: float | None = None,
) -> None:
    view.message(f"run folder {folder.path}")
    for note in folder.config.advice():
        view.message(f"note: {note}")
    if folder.results_path.is_file():
        view.message("this run is finished already")
        return
    stack = folder.config.engine.stack
    if crew.engine == "ray":
        if stack > 1:
            view.message(_TURNS.format(stack, "with --engine inprocess --workers 0"))
        _train_with_ray(folder, view, crew, resumed=resumed)
    else:
        if crew.workers and stack > 1:
            view.message(_TURNS.format(stack, "with --workers 0"))
        _train_in_process(folder, view, crew, until, soonest)


def _train_in_process(
    folder: RunFolder, view: Progress, crew: _Crew, until: str, soonest: float | None
) -> None:
    from nmoe_flower.server_app import execute

    config = folder.config
    with InProcessGrid(
        CLIENT_APP,
        config.data.num_clients,
        run_config=config.flat(),
        workers=crew.size(config),
        stack=config.engine.stack,
        forks=crew.forks,
    ) as grid:
        execute(
            grid,
            folder,
            on_round=view.update,
            on_answer=view.answered,
            until=until,
            soonest=soonest,
        )


def _train_with_ray(
    folder: RunFolder,
    view: Progress,
    crew: _Crew,
    *,
    resumed: bool,
) -> None:
    """The ServerApp in the SuperLink writes rounds.jsonl; this process follows it."""
    from nmoe_flower.server_app import CALLER_TELLS

    workers, cluster = crew.workers, crew.cluster
    if cluster is None:
        view.message("starting a SuperLink and Ray (about 15 s)")
        workers = usable_cores() if workers is None else workers
    else:
        view.message(f"starting a SuperLink; clients run on {cluster}")
    on_gpu = folder.config.run.device.startswith("cuda")
    log_path = folder.path / "simulation.log"
    with (
        tempfile.TemporaryDirectory(prefix="nmoe-app-") as parent,
        log_path.open("a", encoding="utf-8", buffering=1) as log,
    ):
        run_simulation(
            write_app(Path(parent, "app"), folder.config.flat()),
            num_supernodes=folder.config.data.num_clients,
            num_cpus=workers,
            gpus_per_client=_gpu_share(workers, cluster) if on_gpu else 0.0,
            ray_address=None if cluster is None else cluster.address,
            log=lambda line: print(line, file=log),
            on_tick=Follower(folder.rounds_path, view, from_end=resumed),
            environment={CALLER_TELLS: "1", "PYTHONPATH": _path()},
        )


def _path() -> str:
    """Where programs that start elsewhere find code of one's own: as here."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path.cwd())]))


def _gpu_share(workers: int | None, cluster: Cluster | None) -> float:
    """What of a GPU each actor may take, so that all fit; Ray hides the GPU from a share of 0."""
    if cluster is not None:
        return cluster.gpu_share()
    import torch

    workers = workers or 1
    return min(1.0, int(10_000 * max(torch.cuda.device_count(), 1) / workers) / 10_000)
