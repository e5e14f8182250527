"""A run that begins after a shared stage 1 ends bit for bit as if it had trained that itself."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower import files
from nmoe_flower.clients.device import latents
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError
from nmoe_flower.lock import LOCK
from nmoe_flower.pipeline import Run, run_pipeline
from nmoe_flower.progress import make_progress
from nmoe_flower.results import RunFolder
from nmoe_flower.running import CLIENT_APP, run_in
from nmoe_flower.study import share
from nmoe_flower.study.one import StudyTask, carry_out

SILENT = make_progress(None)
TINY: dict[str, Any] = {
    "data.num-clients": 2,
    "data.train-per-client": 40,
    "data.test-per-client": 10,
    "extractor.rounds": 2,
    "extractor.batch-size": 4,
    "extractor.backbone": "mlp",
    "extractor.widths": "8",
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.methods": "federated,global",
    "gate.rounds": 2,
    "gate.local-steps": 1,
    "run.controls": "fedavg",
    "run.evaluate-every": 1,
}
FEDSC = {
    "extractor.method": "fedsc",
    "extractor.server-optimizer": "adamw",
    "contrast.dim": 8,
    "contrast.hidden": 16,
    "contrast.probe-images": 40,
    "head.rounds": 2,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "FedCE": {},
    "private heads": {"extractor.reading": "private-heads"},
    "FedSC": FEDSC,
    "private matrices": FEDSC
    | {"privacy.enabled": True, "privacy.delta": 1e-3, "privacy.releases": 2, "contrast.first": 1},
    "alignment": {
        "run.system": "aligned",
        "alignment.extractor": "stage-1",
        "alignment.rounds": 2,
        "alignment.local-steps": 1,
    },
    "published": {
        "run.system": "pfedmoe",
        "baseline.trunk": "stage-1",
        "baseline.rounds": 2,
        "baseline.local-steps": 1,
    },
}
# What the later stages have otherwise than the run that trained stage 1.
LATER: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rounds": {"gate.rounds": 3, "expert.epochs": 2, "run.controls": ""},
    "shapes": {"gate.hidden": 4, "gate.noisy": True, "gate.top-k": 2},
    "embeddings": {"gate.form": "metric", "gate.embedding": 4},
}


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, warm_cache: Path) -> None:
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.stem}/{name}": array
        for path in sorted((folder / "weights").iterdir())
        for name, array in files.load_arrays(path).items()
    }


def without_seconds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: without_seconds(v) for k, v in value.items() if not k.endswith("seconds")}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


def assert_equal_runs(folder: Path, like: Path) -> None:
    ours, theirs = weights(folder), weights(like)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name
    for file in ("results.json",):
        results = [json.loads((one / file).read_text()) for one in (folder, like)]
        assert without_seconds(results[0]) == without_seconds(results[1])
    assert without_seconds(RunFolder(folder, Config()).rounds()) == without_seconds(
        RunFolder(like, Config()).rounds()
    )
    assert sorted(p.relative_to(folder) for p in (folder / "clients").rglob("*.json")) == sorted(
        p.relative_to(like) for p in (like / "clients").rglob("*.json")
    )


def after_stage_1(config: Config, path: Path, source: Path) -> RunFolder:
    share.ready(source, config, workers=0, view=SILENT)
    return run_in(
        path,
        config,
        workers=0,
        view=SILENT,
        begun=lambda folder: share.begin_after(source, folder),
    )


CASES = [("FedCE", "nothing"), *((system, "shapes") for system in SYSTEMS), ("FedSC", "rounds")]


@pytest.mark.parametrize(("system", "later"), CASES)
def test_a_run_after_a_shared_stage_1_is_the_run_alone(
    system: str, later: str, tmp_path: Path
) -> None:
    base = Config.parse(TINY | SYSTEMS[system])
    config = Config.parse(TINY | SYSTEMS[system] | LATER[later])
    stages = share.Stages1(tmp_path / "stage-1")
    source = stages.place(base)
    share.ready(source, base, workers=0, view=SILENT)
    assert stages.place(config) == source
    alone, after = tmp_path / "alone", tmp_path / "after"
    run_in(alone, config, workers=0, view=SILENT)
    folder = after_stage_1(config, after, source)
    assert_equal_runs(after, alone)
    assert folder.provenance()["stage-1"]["from"] == str(source)
    assert not (after / share.HALF_TAKEN).exists()
    trained = RunFolder.resume(source).checkpoints.newest_state()
    assert trained is not None
    ours, theirs = folder.results()["stages"]["extractor"], trained["costs"]["extractor"]
    assert ours["seconds"] == theirs["seconds"]  # what it cost is told, though others paid it


# --- the key ---

# Another value for every setting that is not in the key; what stands beside it, if it needs that.
OTHERS: dict[str, Any] = {
    "head.method": "sums", "head.components": 2, "head.ridge": 0.2, "head.sharpness": 2.0,
    "head.standardise": True, "head.start": "zero",
    "head.rounds": 3, "head.batch-size": 7, "head.learning-rate": 0.1, "head.weight-decay": 0.1,
    "expert.init": "scratch", "expert.hidden": "9", "expert.epochs": 3, "expert.batch-size": 5,
    "expert.learning-rate": 0.1, "expert.weight-decay": 0.1, "expert.logit-adjustment": 0.5,
    "expert.label-smoothing": 0.1,
    "expert.sharing": "latents",
    "gate.methods": "random", "gate.top-k": 2, "gate.hidden": 5, "gate.noisy": True,
    "gate.home-bias": 1.0, "gate.form": "linear", "gate.embedding": 4, "gate.start": "prototypes",
    "gate.shortlist": 1,
    "gate.rounds": 5, "gate.local-steps": 2, "gate.batch-size": 5, "gate.learning-rate": 0.2,
    "gate.optimizer": "adamw", "gate.fraction-train": 0.5, "gate.objective": "switch",
    "gate.temperature": 2.0, "gate.balance": 0.1, "gate.normalise-gradient": False,
    "gate.holdout": 0.4, "gate.folds": 2, "gate.keep": 0.5, "gate.rolling": "federated",
    "gate.cycles": 2, "gate.distribution": "0.5,0.5", "gate.prior": "em",
    "alignment.policy": "greedy", "alignment.experts": 3, "alignment.capacity": "2",
    "alignment.rounds": 3, "alignment.local-steps": 2, "alignment.batch-size": 5,
    "alignment.learning-rate": 0.1, "alignment.momentum": 0.5, "alignment.weight-decay": 0.1,
    "alignment.fraction-train": 0.5, "alignment.extractor": "stage-1", "alignment.filters": 4,
    "alignment.filter-size": 3, "alignment.filter-stride": 2, "alignment.gate": "local",
    "alignment.gate-learning-rate": 0.1, "alignment.gate-server-rate": 0.1,
    "alignment.gate-decay": 0.5, "alignment.gate-ridge": 0.1, "alignment.anchor": 0.5,
    "alignment.balance": 0.1, "alignment.holdout": 0.2, "alignment.loss-weight": 0.4,
    "alignment.rate": 0.4, "alignment.decay": 0.5, "alignment.prior": 0.4,
    "alignment.centred": True, "alignment.exploration": 0.1, "alignment.usage-decay": 0.5,
    "alignment.fitness-weight": 2.0, "alignment.usage-weight": 2.0,
    "alignment.deficit-weight": 2.0, "alignment.scale": "rank", "alignment.lo": 0,
    "alignment.hi": 2, "alignment.devices": "phone", "alignment.trace": "trace.json",
    "alignment.estimate-capacity": True, "alignment.deadline": 9.0, "alignment.top-k": 2,
    "alignment.evaluate-every": 2,
    "run.system": "aligned", "run.controls": "", "run.control-epochs": 2,
    "run.control-learning-rate": 0.1, "run.wait-for-all": True,
    "engine.stack": 2,
    "data.cache-dir": "", "run.name": "other", "run.out": "elsewhere", "run.checkpoint-every": 1,
    "run.keep-checkpoints": 3, "run.connect-timeout": 60.0, "run.round-timeout": 60.0,
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "head.method": {"expert.hidden": "", "head.rounds": 0},
    "head.components": {"head.method": "sums", "expert.hidden": "", "head.rounds": 0},
    "head.standardise": {"head.rounds": 1},
    "run.system": {"alignment.extractor": "stage-1"},
    "alignment.deadline": {"alignment.devices": "phone"},
    "alignment.estimate-capacity": {"alignment.devices": "phone", "alignment.deadline": 9.0},
}
WITHOUT = (
    "text.",
    "adapter.",
    "baseline.",
    "query.",
    "expert.kind",
)  # of systems without this stage 1
# So that expert.hidden is the experts' affair alone, and a head may be trained after stage 1.
WITH_LABELS = {"extractor.head": "linear", "extractor.reading": "private-heads"}


def trained(config: Config) -> tuple[dict[str, bytes], Any]:
    """Weights and records of stage 1, in this process."""
    records: list[Any] = []
    with InProcessGrid(CLIENT_APP, 2, run_config=config.flat(), workers=0) as grid:
        run = Run(grid, config, records.append)
        assert run_pipeline(run, until=share.STAGE_1) is None
    left = {name: array.tobytes() for name, array in run.artifacts.classifier.items()}
    return left, without_seconds([one for one in records if one["stage"] != "initial"])


@pytest.mark.parametrize("method", [WITH_LABELS, FEDSC], ids=["FedCE", "FedSC"])
def test_every_setting_is_in_the_key_or_changes_nothing_of_stage_1(
    method: dict[str, Any], tmp_path: Path
) -> None:
    """One that is added later must be given its place here."""
    short = {"extractor.rounds": 1, "contrast.probe": "none", "expert.init": "scratch"}
    base = {**TINY, **method, **short}
    keyed = share.depends_on(Config.parse(base)).keys()
    others = Config.parse(base).flat().keys() - keyed
    assert {key for key in others if not key.startswith(WITHOUT)} == OTHERS.keys()
    expected = trained(Config.parse(base | {"run.out": str(tmp_path)}))
    assert len(expected[0]) >= 2
    for key, value in OTHERS.items():
        if key in ("run.out", "run.name", "data.cache-dir"):  # each run below has its own
            continue
        if key.startswith("alignment.") and method is FEDSC:  # one method will do for these
            continue
        changed = {**base, **BESIDE.get(key, {}), key: value}
        if key == "expert.init":
            changed[key] = "fine-tune"
            changed["expert.hidden"] = ""
        config = Config.parse({**changed, "run.out": str(tmp_path), "run.name": key})
        assert share.key_of(config) == share.key_of(Config.parse(base)), key
        assert trained(config) == expected, key


@pytest.mark.parametrize(
    ("key", "value"), [("run.seed", 1), ("data.tau", 0.5), ("extractor.rounds", 3)]
)
def test_what_is_in_the_key_does_change_it(key: str, value: Any, tmp_path: Path) -> None:
    one, other = Config.parse(TINY), Config.parse({**TINY, key: value})
    assert share.key_of(one) != share.key_of(other)
    (ours, _), (theirs, _) = (
        trained(Config.parse({**config.flat(), "run.out": str(tmp_path), "run.name": name}))
        for name, config in (("one", one), ("other", other))
    )
    assert ours != theirs


def test_the_heads_shape_is_stage_1s_affair_with_labels_alone() -> None:
    def key(**settings: Any) -> str:
        return share.key_of(Config.parse({k.replace("__", "."): v for k, v in settings.items()}))

    assert key(expert__hidden="8") != key(expert__hidden="9")
    free = {"extractor__method": "fedsc"}
    assert key(expert__hidden="8", **free) == key(expert__hidden="9", **free)


def test_the_page_says_what_the_key_is_made_of() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "studies.md").read_text()
    (said,) = [part for part in page.split("\n\n") if part.startswith("The key is made of")]
    named = set(re.findall(r"`([\w.-]+)`", said))
    assert named == {*share._SECTIONS, *share._KEYS, "expert.hidden"}


# --- folders ---


def test_a_folder_is_found_whatever_it_is_called(tmp_path: Path) -> None:
    """Stage 1 that was trained elsewhere is taken over by moving it here."""
    config = Config.parse(TINY)
    made = tmp_path / "elsewhere" / "by-hand"
    share.ready(made, config, workers=0, view=SILENT)
    root = tmp_path / "stage-1"
    root.mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "config.toml").write_text("gate.rounds = 'x'\n")
    assert share.Stages1(root).place(config) == root / share.key_of(config)
    made.rename(root / "by-hand")
    assert share.Stages1(root).place(config) == root / "by-hand"
    other = Config.parse({**TINY, "run.seed": 1})
    assert share.Stages1(root).place(other) == root / share.key_of(other)


def test_a_folder_that_was_changed_by_hand_is_named(tmp_path: Path) -> None:
    config = Config.parse(TINY)
    place = share.Stages1(tmp_path).place(config)
    RunFolder.create(place, Config.parse({**TINY, "data.tau": 0.9}))
    with pytest.raises(CheckpointError, match=r"was changed: .* in data.tau; put back what it was"):
        share.Stages1(tmp_path).place(config)


def test_stage_1_that_is_not_over_or_went_on_is_not_taken(tmp_path: Path) -> None:
    config = Config.parse(TINY | {"gate.methods": "local", "run.controls": ""})
    source = tmp_path / "source"
    run_in(source, config, workers=0, view=SILENT)
    new = RunFolder.create(tmp_path / "new", config)
    with pytest.raises(CheckpointError, match="went on after stage 1"):
        share.begin_after(source, new)
    (empty := RunFolder.create(tmp_path / "empty", config))
    with pytest.raises(CheckpointError, match="is not finished"):
        share.begin_after(empty.path, new)
    other = RunFolder.create(tmp_path / "other", Config.parse({**TINY, "data.tau": 0.9}))
    with pytest.raises(CheckpointError, match="of another configuration, in data"):
        share.begin_after(other.path, new)
    assert (new.path / share.HALF_TAKEN).exists()  # so that nobody resumes it


def test_half_a_copy_is_begun_anew(tmp_path: Path) -> None:
    """As after a kill between two files of the copy."""
    config = Config.parse(TINY | SYSTEMS["private matrices"])
    source, path = tmp_path / "source", tmp_path / "run"
    share.ready(source, config, workers=0, view=SILENT)
    folder = RunFolder.create(path, config)
    share.begin_after(source, folder)
    shutil.rmtree(path / "checkpoints")
    (path / share.HALF_TAKEN).write_text("")
    assert RunFolder.has_trained(path)
    run_in(
        path, config, workers=0, view=SILENT, anew=True,
        begun=lambda folder: share.begin_after(source, folder),
    )  # fmt: skip
    alone = tmp_path / "alone"
    run_in(alone, config, workers=0, view=SILENT)
    assert_equal_runs(path, alone)


def test_latents_are_computed_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.parse(TINY)
    source, first = tmp_path / "source", tmp_path / "first"
    after_stage_1(config, first, source)
    share.give_latents(first, source)
    assert len(list(source.glob("clients/*/latents.safetensors"))) == 2

    def never(*_: Any) -> Any:
        raise AssertionError("latents were computed again")

    monkeypatch.setattr(latents, "_of_training", never)
    other = Config.parse({**TINY, "gate.rounds": 3, "expert.epochs": 2})
    after_stage_1(other, tmp_path / "second", source)


def test_latents_of_a_given_extractor_stay_in_the_data_cache_alone(tmp_path: Path) -> None:
    given = {
        "extractor.method": "pretrained", "extractor.backbone": "tests.given_backbone:Tiny",
        "extractor.cut": "low:2", "expert.init": "scratch", "expert.hidden": "",
        "gate.methods": "local",
    }  # fmt: skip
    leave = {"extractor.rounds", "extractor.batch-size", "extractor.widths"}
    config = Config.parse({k: v for k, v in TINY.items() if k not in leave} | given)
    run_in(tmp_path / "alone", config, workers=0, view=SILENT)
    assert len(list((tmp_path / "alone").glob("clients/*/latents.safetensors"))) == 2
    carry_out(StudyTask.of(tmp_path / "one", config, stage_1=None, alone=False, workers=0), SILENT)
    assert not list((tmp_path / "one").glob("clients/*/latents.safetensors"))
    assert_equal_runs(tmp_path / "one", tmp_path / "alone")


def test_a_run_after_a_shared_head_is_the_run_alone(tmp_path: Path) -> None:
    """The head is trained for the first run, and taken by one with other experts and gates."""
    first = Config.parse(TINY | FEDSC)
    second = Config.parse(TINY | FEDSC | LATER["shapes"] | LATER["rounds"])
    stage = share.Stages1(tmp_path / "stage-1").place(first)
    run_in(tmp_path / "alone", second, workers=0, view=SILENT)
    for name, config in (("first", first), ("second", second)):
        task = StudyTask.of(tmp_path / name, config, stage_1=stage, alone=False, workers=0)
        carry_out(task, SILENT)
    assert_equal_runs(tmp_path / "second", tmp_path / "alone")
    (head,) = (stage / share.HEAD_STAGE).iterdir()
    assert share.head_place(stage, second) == head
    for name in ("first", "second"):
        assert RunFolder.resume(tmp_path / name).provenance()["stage-1"]["from"] == str(head)
    assert share.is_ready(stage)
    assert not share.is_ready(stage, share.HEAD_STAGE)  # it stays what other heads begin after


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head.rounds", 3),
        ("head.batch-size", 5),
        ("head.learning-rate", 1e-3),
        ("head.weight-decay", 0.1),
        ("expert.hidden", "4"),
    ],
)
def test_another_head_is_trained_in_a_place_of_its_own(
    key: str, value: Any, tmp_path: Path
) -> None:
    config = Config.parse(TINY | FEDSC)
    other = Config.parse(TINY | FEDSC | {key: value})
    assert share.key_of(other) == share.key_of(config)
    assert share.head_place(tmp_path, other) != share.head_place(tmp_path, config)
    stage = tmp_path / "stage"
    share.ready(stage, config, workers=0, view=SILENT)
    head = share.head_place(stage, config)
    share.ready(head, config, workers=0, view=SILENT, after=stage)
    folder = RunFolder.create(tmp_path / "run", other)
    with pytest.raises(CheckpointError, match=f"head of another configuration, in .*{key}"):
        share.begin_after(head, folder)


def test_whoever_comes_second_waits(tmp_path: Path) -> None:
    """Stage 1 is trained by one process at a time; the others take what it leaves."""
    config, place = Config.parse(TINY), tmp_path / "stage-1"
    told: list[str] = []

    class View:
        def __getattr__(self, name: str) -> Any:
            return lambda *values: told.append(str(values[0])) if name == "message" else None

    def meanwhile(seconds: float) -> None:
        os.close(holder)
        (place / LOCK).unlink()

    place.mkdir()
    holder = os.open(place / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    share.ready(place, config, workers=0, view=View(), sleep=meanwhile)
    assert share.is_ready(place)
    assert [text for text in told if text.startswith("waiting for stage 1: ")] == told[:1]
