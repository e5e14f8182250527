"""What of a study is there, what is missing, what shares work with what, and how long it takes."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any, Literal

from nmoe_flower.begun import is_run, run_folders
from nmoe_flower.config import Config
from nmoe_flower.errors import CheckpointError, ConfigError, NMoEError, within
from nmoe_flower.files import read_json, read_text
from nmoe_flower.own_code import load_own
from nmoe_flower.results import (
    FREE_KEYS,
    RunFolder,
    absolute_settings,
    cost_of_stage,
    settings_lost,
)
from nmoe_flower.study.dealt import Dealt
from nmoe_flower.study.elsewhere import folder_of
from nmoe_flower.study.file import Study
from nmoe_flower.study.pace import guessed_after, guessed_stage_1, work_after
from nmoe_flower.study.product import StudyRun, in_words, variant_in_words
from nmoe_flower.study.share import (
    FILLED_IN,
    HALF_TAKEN,
    STAGE_1,
    Stages1,
    key_of,
    trains_stage_1,
)

__all__ = [
    "FAILED",
    "OF_STAGE_1",
    "REST",
    "PlannedRun",
    "SharedStage",
    "StudyPlan",
    "chosen",
    "failure_in",
    "find_state",
    "make_plan",
]

State = Literal["finished", "stopped", "failed", "missing", "broken", "other", "refused"]
_TO_MAKE: frozenset[State] = frozenset({"stopped", "failed", "missing"})
FAILED = "failed.json"
"""Why a run failed, in its folder, until it does not."""
OF_STAGE_1 = "stage 1 failed: "
"""What the reason of a run begins with whose stage 1 has failed."""
REST = ("alignment", "baseline")
"""Stages that are nearly all that their systems do after stage 1; named as their settings are."""

_RESULTS = Path(__file__).resolve().parents[2] / "results"  # of a checkout
# How long stage 1 takes goes by these, and by its rounds; how long the rest takes, by those too.
_PACE = (
    "data.dataset",
    "data.num-clients",
    "data.train-per-client",
    "extractor.method",
    "extractor.backbone",
    "extractor.widths",
    "extractor.norm",
    "extractor.pool",
    "extractor.local-steps",
    "extractor.local-epochs",
    "extractor.batch-size",
    "contrast.view-size",
    "run.device",
)
_WORK = ("run.system", "run.controls", "run.control-epochs", "gate.methods", "head.rounds")
_FIRST = ("describe", "initial", STAGE_1, f"{STAGE_1}-test")  # stages that others share


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, and how it stands.

    Attributes:
        run: The run.
        path: The run's folder.
        state: finished; stopped (it goes on where it was); failed (it, or its stage 1, is tried
            again); missing; broken (its files cannot be read); other (another configuration is
            there); refused (the data cannot be dealt out as it asks).
        reason: Why, in words; where a stopped run stands. Empty: nothing to say.
        stage_1: Name of the shared stage; empty: it needs none, any more or at all.
        seconds: What it still takes, without the shared stage.
    """

    run: StudyRun
    path: Path
    state: State
    reason: str
    stage_1: str
    seconds: float

    @property
    def runs(self) -> bool:
        """Whether ``nmoe study run`` would run it."""
        return self.state in _TO_MAKE


@dataclass(frozen=True)
class SharedStage:
    """A stage 1, and the runs that wait for it.

    Attributes:
        key: The stage's name.
        path: The stage's run folder.
        state: finished, stopped, failed, or missing.
        reason: Where a stopped one stands, why one has failed; empty: nothing to say.
        seconds: What it still takes.
        config: The configuration of the first run that needs it.
        users: How many runs need it still.
    """

    key: str
    path: Path
    state: State
    reason: str
    seconds: float
    config: Config = field(repr=False)
    users: int = 1


@dataclass(frozen=True)
class StudyPlan:
    """How a study stands.

    Attributes:
        study: The study.
        folder: The study's folder.
        runs: The runs, in order.
        stages: The shared stages that are still needed, in the order of their runs.
        source: Where the estimates come from, in words.
    """

    study: Study
    folder: Path
    runs: list[PlannedRun]
    stages: list[SharedStage]
    source: str

    @property
    def seconds(self) -> float:
        """What all that is missing takes, one after the other."""
        return sum(one.seconds for one in self.runs) + sum(one.seconds for one in self.stages)

    @property
    def keys(self) -> set[str]:
        """The names of all shared stages of its runs, of those that are done with them, too."""
        return {key_of(one.run.config) for one in self.runs if trains_stage_1(one.run.config)}

    def count(self, state: State) -> int:
        """How many runs stand so."""
        return sum(one.state == state for one in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "study": self.study.name,
            "title": self.study.title,
            "folder": str(self.folder),
            "minutes": round(self.seconds / 60, 1),
            "estimated-from": self.source,
            "runs": [
                {
                    "run": one.run.name,
                    "variant": one.run.named,
                    "values": dict(one.run.values),
                    "seed": one.run.seed,
                    "state": one.state,
                    "reason": one.reason,
                    "stage-1": one.stage_1,
                    "minutes": round(one.seconds / 60, 1),
                }
                for one in self.runs
            ],
            "stage-1": [
                {
                    "key": one.key,
                    "folder": str(one.path),
                    "state": one.state,
                    "reason": one.reason,
                    "runs": one.users,
                    "minutes": round(one.seconds / 60, 1),
                }
                for one in self.stages
            ],
        }


def chosen(study: Study, *, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[StudyRun]:
    """The runs of a study that are meant.

    Args:
        study: The study.
        only: Patterns of variants or of ``variant/seed-N``, with ``*`` and ``?``; none: all.
        seeds: Seeds of the study; none: all.

    Raises:
        ConfigError: A pattern matches nothing, a seed is not the study's, or no run is left.
    """
    for seed in seeds:
        if seed not in study.seeds:
            raise ConfigError(
                f"--seeds {seed}: {study.path} has no such seed; allowed: {in_words(*study.seeds)}"
            )
    for pattern in only:
        if not any(_is_meant(run, pattern) for run in study.runs):
            variants = dict.fromkeys(run.variant for run in study.runs)
            raise ConfigError(
                f"--only {pattern} matches no run of {study.path}; variants: {in_words(*variants)}"
            )
    found = [
        run
        for run in study.runs
        if run.seed in (seeds or study.seeds)
        and any(_is_meant(run, pattern) for pattern in only or ("*",))
    ]
    if not found:
        of = [("--only", only), ("--seeds", seeds)]
        asked = " ".join(" ".join(map(str, [option, *given])) for option, given in of if given)
        raise ConfigError(f"{asked}: {study.path} has no such run; nmoe study plan lists them")
    return found


def _is_meant(run: StudyRun, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (run.variant, run.name, run.named))


def make_plan(
    study: Study,
    out: Path,
    *,
    stage_1: Path | None = None,
    runs: Sequence[StudyRun] | None = None,
    finished: Sequence[Path] = (),
    results: Path = _RESULTS,
) -> StudyPlan:
    """Look at a study's folder; nothing is written.

    Args:
        study: The study.
        out: The folder of all studies.
        stage_1: The folder of shared stages; None: ``stage-1`` beside the studies.
        runs: Runs of the study; None: all.
        finished: Folders like ``out`` with runs that finished elsewhere; these need not be made.
        results: Published runs, to estimate by; it need not exist.

    Raises:
        ConfigError: A run that is still to be made names code of one's own that is not there.
    """
    folder = out / study.name
    stages: dict[Path, Stages1] = {}
    wanted = study.runs if runs is None else list(runs)
    resume = _Resume()
    seen = [_seen(run, out, finished, resume) for run in wanted]
    _check_own_code(study, [run for run, _, state, _ in seen if state in _TO_MAKE])
    seen = _dealt(seen)
    clock = _Clock(_measured(seen, results, study.name))
    planned, shared = [], dict[str, SharedStage]()
    for run, path, state, reason in seen:
        fresh = state in ("missing", "failed") and not RunFolder.has_trained(path)
        key = key_of(run.config) if fresh and trains_stage_1(run.config) else ""
        seconds = 0.0
        if state in _TO_MAKE:
            seconds = clock.later(run.config) if fresh else _left(path, run.config, clock)
        if key:
            root = stage_1 or path.parents[2] / "stage-1"  # beside all studies
            place = stages.setdefault(root, Stages1(root))
            shared[key] = stage = _shared(key, run.config, place, clock, shared.get(key))
            if state == "missing" and stage.state == "failed":
                state, reason = "failed", f"{OF_STAGE_1}{stage.reason}"
        planned.append(PlannedRun(run, path, state, reason, key, seconds))
    return StudyPlan(study, folder, planned, list(shared.values()), clock.source)


def _seen(
    run: StudyRun, out: Path, finished: Sequence[Path], resume: "_Resume"
) -> tuple[StudyRun, Path, State, str]:
    path = folder_of(run, out, finished)
    if path != out / run.place:
        return run, path, "finished", ""
    return run, path, *find_state(run, path, resume)


def _dealt(
    seen: Sequence[tuple[StudyRun, Path, State, str]],
) -> list[tuple[StudyRun, Path, State, str]]:
    """The runs, those refused that would begin and whose data cannot be dealt out."""
    dealt, found = Dealt(), []
    for run, path, state, reason in seen:
        begins = state in ("missing", "failed") and not RunFolder.has_trained(path)
        if begins and (refusal := dealt.refusal(run.config)):
            state, reason = "refused", refusal
        found.append((run, path, state, reason))
    return found


def _check_own_code(study: Study, runs: Iterable[StudyRun]) -> None:
    """Refuse what a worker would not find either; each name is looked for once."""
    wanted: dict[tuple[str, str], StudyRun] = {}
    for run in runs:
        for named in run.config.own_names():
            wanted.setdefault(named, run)
    for (key, name), run in wanted.items():
        with within(f"the study {study.path}: {variant_in_words(run.named, run.values)}"):
            load_own(key, name)


def find_state(
    run: StudyRun, path: Path, resume: Callable[[Path], RunFolder] = RunFolder.resume
) -> tuple[State, str]:
    """How a run stands, and why, in words.

    Args:
        run: The run.
        path: The run's folder; it need not exist.
        resume: Reads the folder.
    """
    failed = failure_in(path)
    if not is_run(path):
        if lost := settings_lost(path):
            return "broken", lost
        return ("failed", failed) if failed else ("missing", "")
    try:
        there = resume(path)
    except NMoEError as error:
        return "broken", str(error)
    if (path / HALF_TAKEN).exists() or not RunFolder.has_trained(path):
        return ("failed", failed) if failed else ("missing", "")
    if different := _differences(run.config, there.config):
        return "other", f"another configuration is there: {'; '.join(different)}"
    if there.results_path.exists():
        try:
            _ = _looks_whole(there.results_path) or there.results()
        except NMoEError as error:
            return "broken", str(error)
        return "finished", ""
    if failed:
        return "failed", failed
    return "stopped", _where(there)


class _Resume:
    """Finds runs again, and reads configurations that differ in their seeds once."""

    _OWN = re.compile(r"^(?:seed = (\d+)|name = .*|out = .*)\n", re.MULTILINE)

    def __init__(self) -> None:
        self._read: dict[str, Config] = {}

    def __call__(self, path: Path) -> RunFolder:
        """As `RunFolder.resume`."""
        if not (path / "config.toml").is_file():
            return RunFolder.resume(path)
        text = read_text(path / "config.toml", raises=CheckpointError)
        common, seeds = self._OWN.sub("", text), self._OWN.findall(text)
        known, seeds = self._read.get(common), [seed for seed in seeds if seed]
        if known is None or len(seeds) != 1 or not (path / "provenance.json").is_file():
            folder = RunFolder.resume(path)
            self._read[common] = folder.config
            return folder
        run = known.run.model_copy(update={"seed": int(seeds[0])})
        return RunFolder(path, known.model_copy(update={"run": run}))


def _looks_whole(path: Path) -> bool:
    """Whether a file holds results, by a quick look; what is wrong is found by another."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes(), parse_constant=_refuse)
        return isinstance(found, dict) and isinstance(found.get("rows"), list)
    return False


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _differences(ours: Config, theirs: Config) -> list[str]:
    """Settings in which the run that is there is another than the study's, with both values."""
    asked, there = absolute_settings(ours), absolute_settings(theirs)
    return [
        f"{key} is {in_words(there[key])} and not {in_words(value)}"
        for key, value in asked.items()
        if key not in FREE_KEYS and there[key] != value and not (key in FILLED_IN and not value)
    ]


def failure_in(path: Path) -> str:
    """Why the run or the stage in a folder has failed, in one line; empty: it has not."""
    if not (path / FAILED).exists():
        return ""
    try:
        told = read_json(path / FAILED)
    except NMoEError:
        return "for a reason that cannot be read any more"
    reason = told.get("error") if isinstance(told, dict) else None
    return " ".join(str(reason or "for an unknown reason").split())


def _where(folder: RunFolder) -> str:
    state = folder.checkpoints.newest_state()
    if state is None:
        return "before its first checkpoint"
    stage, current = str(state.get("stage", "")), state.get("round", 0)
    return (
        f"after round {current} of {stage}" if current else f"after {stage.removesuffix('/done')}"
    )


def _share_done(path: Path, config: Config) -> float:
    """How much of stage 1 a stopped run or stage has behind it, 0 to 1."""
    state = RunFolder(path, Config()).checkpoints.newest_state()
    if state is None:
        return 0.0
    if state.get("stage") == STAGE_1:
        return min(1.0, float(state.get("round", 0)) / max(1, config.extractor.rounds))
    return 1.0 if STAGE_1 in state.get("stages", ()) else 0.0


def _left(path: Path, config: Config, clock: "_Clock") -> float:
    """Seconds of what a run that began has yet to do: by its own rounds, if they tell."""
    state = RunFolder(path, Config()).checkpoints.newest_state() or {}
    stage, done = state.get("stage"), state.get("round", 0)
    if stage in REST and done:
        rounds = int(getattr(config, stage).rounds)
        return float(state["costs"][stage]["seconds"]) / int(done) * max(0, rounds - int(done))
    first = 1 - _share_done(path, config) if trains_stage_1(config) else 0.0
    return clock.later(config) + (clock.stage_1(config) * first if first else 0.0)


def _shared(
    key: str, config: Config, stages: Stages1, clock: "_Clock", before: SharedStage | None
) -> SharedStage:
    if before is not None:
        return SharedStage(
            key, before.path, before.state, before.reason, before.seconds, before.config,
            before.users + 1,
        )  # fmt: skip
    path = stages.place(config)
    done = _share_done(path, config)
    began = done > 0 or RunFolder.has_trained(path)
    state: State = "finished" if done == 1 else "stopped" if began else "missing"
    reason = _where(RunFolder(path, config)) if state == "stopped" else ""
    if state != "finished" and (failed := failure_in(path)):
        state, reason = "failed", failed
    return SharedStage(key, path, state, reason, clock.stage_1(config) * (1 - done), config)


# --- how long ---


@dataclass(frozen=True)
class _Measured:
    """What a finished run took: seconds of stage 1, and of all else, controls and tests too."""

    config: Config
    stage_1: float
    later: float


def _measured(
    seen: Iterable[tuple[StudyRun, Path, State, str]], results: Path, study: str
) -> Iterator[tuple[str, list[_Measured]]]:
    """Finished runs of the study, one of each variant; then published ones, its own first."""
    first = {run.variant: (run, path) for run, path, state, _ in seen if state == "finished"}
    yield (
        "finished runs of this study",
        [
            one
            for run, path in first.values()
            if (one := _read_costs(run.config, path / "results.json")) is not None
        ],
    )
    variants = {folder.parent: folder for folder in run_folders(results)}
    own = [one for place, one in variants.items() if place.parent.name == study]
    yield "published runs of this study", list(_published(own))
    yield "published runs", list(_published(variants.values()))


def _published(folders: Iterable[Path]) -> Iterator[_Measured]:
    for folder in folders:
        try:
            config = Config.load(folder)
        except NMoEError:
            continue
        if (one := _read_costs(config, folder / "results.json")) is not None:
            yield one


def _read_costs(config: Config, file: Path) -> _Measured | None:
    try:
        results = read_json(file)
        seconds = {
            name: float(cost_of_stage(told)["seconds"]) for name, told in results["stages"].items()
        }
        whole = float(results.get("seconds") or sum(seconds.values()))
    except (NMoEError, KeyError, TypeError, ValueError):
        return None
    first = sum(value for name, value in seconds.items() if name in _FIRST)
    return _Measured(config, first, max(0.0, whole - first))


class _Clock:
    """Estimates from what was measured, the nearest first."""

    def __init__(self, measured: Iterator[tuple[str, list[_Measured]]]) -> None:
        self._sources = measured
        self._read: list[tuple[str, list[_Measured]]] = []
        self._used: dict[str, None] = {}
        self._known: dict[Any, float] = {}

    @property
    def source(self) -> str:
        """Where the estimates came from, in words."""
        return ", ".join(self._used) or "nothing: all is there"

    def stage_1(self, config: Config) -> float:
        """Seconds of stage 1."""
        rounds = config.extractor.rounds
        asked = _alike(config, _PACE)

        def found(one: _Measured) -> float | None:
            if one.config.extractor.rounds == 0 or one.config.extractor.start:
                return None
            return rounds * one.stage_1 / one.config.extractor.rounds

        name = ("1", asked, rounds)
        return self._estimate(name, _PACE, asked, found, guessed_stage_1(config))

    def later(self, config: Config) -> float:
        """Seconds of all that comes after stage 1."""
        keys = (*_PACE, *_WORK)
        asked = _alike(config, keys)
        work = work_after(config)

        def found(one: _Measured) -> float:
            return one.later * work / work_after(one.config)

        return self._estimate(("2", asked, work), keys, asked, found, guessed_after(config))

    def _estimate(self, name: Any, keys: Any, asked: Any, found: Any, guess: float) -> float:
        if name in self._known:
            return self._known[name]
        for source, measured in self._all():
            values = [found(one) for one in measured if _alike(one.config, keys) == asked]
            values = [value for value in values if value is not None]
            if values:
                self._used[source] = None
                self._known[name] = median(values)  # some were made on a busy machine
                return self._known[name]
        self._used["guesses by the number of steps, which may be far off"] = None
        self._known[name] = guess
        return guess

    def _all(self) -> Iterator[tuple[str, list[_Measured]]]:
        """Sources, read only when the nearer ones did not do."""
        yield from self._read
        for source in self._sources:
            self._read.append(source)
            yield source


def _alike(config: Config, keys: Sequence[str]) -> tuple[Any, ...]:
    """What two runs share if one takes as long as the other; all data but digits are alike."""
    found = []
    for key in keys:
        section, _, leaf = key.partition(".")
        value = getattr(getattr(config, section), leaf.replace("-", "_"))
        found.append(value == "digits" if key == "data.dataset" else value)
    return tuple(found)
