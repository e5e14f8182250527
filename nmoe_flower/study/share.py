"""One stage 1 for all runs that differ in later stages only, and one head on it for those of them.

Stage 1 is trained in a run folder of its own, ``stage-1/<key>``, that stops with a checkpoint of
the finished stage. A run that needs it begins with a copy of that: its checkpoint, its records, and
what the clients keep on their disks. From there on it is an ordinary run that was stopped, and ends
with the numbers it would have had alone. A stage head in between is shared in the same way: it is a
run that begins after stage 1 and stops, in ``stage-1/<key>/head/<digest>``.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nmoe_flower.checkpoint import Checkpoint
from nmoe_flower.config import Config, Scalar
from nmoe_flower.errors import CheckpointError, LockedError, NMoEError
from nmoe_flower.files import link_or_copy, to_json, write_text
from nmoe_flower.lock import locked
from nmoe_flower.progress import Progress
from nmoe_flower.results import FREE_KEYS, RunFolder, absolute_settings

__all__ = [
    "HEAD_STAGE",
    "STAGE_1",
    "Stages1",
    "begin_after",
    "depends_on",
    "drop_latents",
    "give_latents",
    "head_place",
    "is_ready",
    "key_of",
    "ready",
    "trains_head",
    "trains_stage_1",
]

STAGE_1 = "extractor"
HEAD_STAGE = "head"
HALF_TAKEN = "stage-1.taken"
"""The file that stands in a run folder while stage 1 is being copied into it."""

# What stage 1 depends on: its weights, its records, and what clients keep of it. All of [data],
# because the tests during stage 1 are records too.
_SECTIONS = frozenset({"data", "extractor", "contrast", "privacy"})
_KEYS = frozenset(
    {"run.seed", "run.device", "run.precision", "run.evaluate-every", "run.min-replies"}
)
_OF_THE_HEAD = "expert.hidden"  # is stage 1's business where its head is shaped as an expert
# What the fresh gate and head depend on that a client hands out before stage 1.
_FRESH = (
    "gate.form", "gate.embedding", "gate.hidden", "gate.noisy", "gate.start", "gate.top-k",
    _OF_THE_HEAD,
    "head.method", "head.components", "head.standardise",
)  # fmt: skip
# What a run fills in from its data.
FILLED_IN = frozenset({"data.feature-columns", "data.feature-means", "data.feature-deviations"})
_WAIT = 2.0  # seconds between two looks at a stage 1 that somebody else trains


def trains_stage_1(config: Config) -> bool:
    """Whether a run has a stage 1 of its own."""
    return config.has_stage_1 and not (config.extractor.start or config.extractor.is_given)


def trains_head(config: Config) -> bool:
    """Whether a run has a stage head of some rounds between stages 1 and 2."""
    return config.run.system == "networked" and config.head.rounds > 0


def depends_on(config: Config) -> dict[str, Scalar]:
    """The settings that stage 1 depends on, by dotted key.

    >>> "data.tau" in depends_on(Config.parse({})), "gate.rounds" in depends_on(Config.parse({}))
    (True, False)
    """
    labelled = config.extractor.method == "fedce" and config.extractor.head == "expert"
    return {
        key: value
        for key, value in absolute_settings(config).items()
        if key not in FREE_KEYS
        and (
            key.partition(".")[0] in _SECTIONS
            or key in _KEYS
            or (labelled and key == _OF_THE_HEAD)
            or (config.sums_come_first and key.startswith("head."))
        )
    }


def key_of(config: Config) -> str:
    """The name of a configuration's stage 1: equal for two that can share it.

    >>> key_of(Config.parse({"gate.rounds": 3})) == key_of(Config.parse({"gate.rounds": 4}))
    True
    >>> key_of(Config.parse({"run.seed": 3})) == key_of(Config.parse({"run.seed": 4}))
    False
    """
    return f"{config.extractor.method}-seed-{config.run.seed}-{_digest(depends_on(config))}"


def head_place(stage_1: Path, config: Config) -> Path:
    """The run folder of the head that a configuration trains on the stage 1 in a folder."""
    return stage_1 / HEAD_STAGE / _digest(_head_depends_on(config))


def _head_depends_on(config: Config) -> dict[str, Scalar]:
    """The settings beside those of stage 1 that the head depends on, by dotted key."""
    shaped = config.extractor.head == "expert"
    return {
        key: value
        for key, value in config.flat().items()
        if key.startswith("head.") or (shaped and key == _OF_THE_HEAD)
    }


def _digest(settings: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Stages1:
    """The folder in which stage 1 is trained for several runs.

    Attributes:
        root: A folder of run folders; it need not exist. Their names do not matter.
    """

    root: Path

    def place(self, config: Config) -> Path:
        """The run folder of a configuration's stage 1: one that is there, or is to be made.

        Raises:
            CheckpointError: The folder that has the key for a name holds another stage 1.
        """
        path = self.root / key_of(config)
        if (path / "config.toml").is_file():
            if different := _different(config, RunFolder.resume(path).config):
                raise CheckpointError(
                    f"{path} was changed: stage 1 there is that of another configuration, in "
                    f"{', '.join(different)}; put back what it was, or delete the folder"
                )
            return path
        return self._others.get(path.name, path)

    @cached_property
    def _others(self) -> dict[str, Path]:
        """Run folders of other names, by their keys."""
        found = {}
        for file in sorted(self.root.glob("*/config.toml"), reverse=True):
            with suppress(NMoEError):
                found[key_of(RunFolder.resume(file.parent).config)] = file.parent
        return found


def _different(config: Config, trained: Config, stage: str = STAGE_1) -> list[str]:
    """Keys in which a stage 1 or head is another; what a run fills in from its data is none."""
    ours, theirs = depends_on(config), depends_on(trained)
    if stage == HEAD_STAGE:
        ours, theirs = ours | _head_depends_on(config), theirs | _head_depends_on(trained)
    return [
        key
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not (key in FILLED_IN and not ours.get(key))
    ]


def is_ready(path: Path, stage: str = STAGE_1) -> bool:
    """Whether a run folder holds a finished stage 1, or a finished head."""
    state = RunFolder(path, Config()).checkpoints.newest_state()
    return state is not None and stage in state.get("stages", ())


def ready(
    path: Path,
    config: Config,
    *,
    workers: int,
    view: Progress,
    after: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Train stage 1 in its folder, or a head after it, or wait for whoever does.

    Args:
        path: The run folder of the stage.
        config: The configuration of a run that needs it.
        workers: Client processes.
        view: Where the training reports to.
        after: The run folder of the finished stage 1, for a head; None: stage 1 is what is trained.
        sleep: Waits so many seconds.

    Raises:
        NMoEError: It cannot be trained.
    """
    from nmoe_flower.running import run_in

    def begun(folder: RunFolder) -> None:
        if after is not None:
            begin_after(after, folder)

    stage, told = HEAD_STAGE if after is not None else STAGE_1, False
    while not is_ready(path, stage):
        try:
            with locked(path, otherwise="another --stage-1"):  # before all that a run checks first
                pass
            anew = (path / HALF_TAKEN).exists()
            run_in(path, config, workers=workers, view=view, begun=begun, anew=anew, until=stage)
        except LockedError as error:
            if not told:
                name = "the head" if after is not None else "stage 1"
                view.message(f"waiting for {name}: {error}")
            told = True
            sleep(_WAIT)


def begin_after(source: Path, folder: RunFolder) -> None:
    """Let a new run begin where stage 1, or the head after it, has ended in another folder.

    Killed in between, the run is half taken: it is begun anew next time.

    Args:
        source: The run folder of the stage.
        folder: The new run, of a configuration that has this stage 1, and this head if it is one.

    Raises:
        CheckpointError: There is no finished stage, or it is that of another configuration.
        NMoEError: The folder cannot be written.
    """
    mark = folder.path / HALF_TAKEN
    write_text(mark, f"{source}\n")
    origin = RunFolder.resume(source)
    if different := _different(folder.config, origin.config):
        raise CheckpointError(
            f"{source} holds the stage 1 of another configuration, in {', '.join(different)}"
        )
    checkpoint = _finished(origin)
    if different := _different(folder.config, origin.config, checkpoint.state["stages"][-1]):
        raise CheckpointError(
            f"{source} holds the head of another configuration, in {', '.join(different)}"
        )
    arrays, state = dict(checkpoint.arrays), dict(checkpoint.state)
    records = origin.rounds()[: state["written"]]
    if any(origin.config.flat()[key] != folder.config.flat()[key] for key in _FRESH):
        arrays, state["costs"], records = _asked_again(folder.config, arrays, state, records)
    try:
        for file in sorted((source / "clients").rglob("*")):
            if file.is_file() and not file.name.endswith(".tmp"):
                copy = folder.path / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, copy)
    except OSError as error:
        raise NMoEError(f"cannot copy stage 1 to {folder.path}: {error.strerror}") from error
    write_text(folder.rounds_path, "".join(to_json(record) + "\n" for record in records))
    taken = {k: v for k, v in origin.provenance().items() if k in _OF_THE_ORIGIN}
    folder.set_provenance(**{"stage-1": {"from": str(source), **taken}})
    folder.checkpoints.save(checkpoint.step, arrays, {**state, "settings": folder.config.flat()})
    mark.unlink()


_OF_THE_ORIGIN = ("started", "versions", "git", "machine")


def _finished(origin: RunFolder) -> Checkpoint:
    checkpoint = origin.checkpoints.latest()
    stages = checkpoint.state["stages"] if checkpoint is not None else []
    if checkpoint is None or STAGE_1 not in stages:
        raise CheckpointError(f"stage 1 in {origin.path} is not finished")
    after_head = trains_head(origin.config) and stages == [STAGE_1, HEAD_STAGE]
    if not (stages == [STAGE_1] or after_head) or (
        checkpoint.state["stage"] != f"{stages[-1]}/done"
    ):
        raise CheckpointError(
            f"the run in {origin.path} went on after stage 1, and what others would share is "
            "gone: move it to a folder of its own"
        )
    return checkpoint


def _asked_again(
    config: Config,
    arrays: Mapping[str, Any],
    state: Mapping[str, Any],
    records: list[dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Fresh gate and head of this configuration, in the place of those that were handed out."""
    from nmoe_flower.engine import InProcessGrid
    from nmoe_flower.pipeline import Artifacts, Run, ask_initial
    from nmoe_flower.running import CLIENT_APP

    told: list[Mapping[str, Any]] = []
    clients = config.data.num_clients
    with InProcessGrid(CLIENT_APP, clients, run_config=config.flat(), workers=0) as grid:
        run = Run(grid, config, told.append)
        run.connect()
        ask_initial(run)
    fresh = Artifacts(
        initial_gate=run.artifacts.initial_gate, initial_head=run.artifacts.initial_head
    ).named()
    before = {f"done/{name}" for name in _fresh_names(arrays)}
    kept = {name: array for name, array in arrays.items() if name not in before}
    kept |= {f"done/{name}": array for name, array in fresh.items()}
    stage = told[-1]["stage"]
    costs = {**state["costs"], stage: run.costs[stage]}
    return kept, costs, [dict(told[-1]) if one["stage"] == stage else one for one in records]


def _fresh_names(arrays: Mapping[str, Any]) -> Iterator[str]:
    """Names of the fresh gate and head in a checkpoint."""
    from nmoe_flower.pipeline import Artifacts
    from nmoe_flower.records import part_of

    found = Artifacts.read(part_of(arrays, "done/"))
    yield from Artifacts(initial_gate=found.initial_gate, initial_head=found.initial_head).named()


def give_latents(folder: Path, source: Path) -> None:
    """Leave the latents a run has computed to those that begin after the same stage 1.

    They say themselves what they were made from; whoever needs others computes them.
    """
    for file in (folder / "clients").glob("*/latents.safetensors"):
        copy = source / file.relative_to(folder)
        with suppress(OSError):
            if not copy.exists() and is_ready(source):
                copy.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, copy)


def drop_latents(folder: Path) -> None:
    """Let a finished run's latents under a given extractor go: the data cache has what they are of.

    Those of ten devices of CIFAR-10 take 270 MB, and a study has many runs.
    """
    for file in (folder / "clients").glob("*/latents.safetensors"):
        with suppress(OSError):
            file.unlink()
