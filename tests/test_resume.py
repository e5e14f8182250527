"""Killed at any moment and resumed, a run ends bit for bit as if nothing had happened."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower import files
from nmoe_flower.catalogue import BASELINES
from nmoe_flower.clients import control
from nmoe_flower.clients.device import Device
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError
from nmoe_flower.results import RunFolder
from nmoe_flower.server_app import execute
from tests.forks import Nmoe
from tests.pipeline.test_baselines import GIVEN, KEEPS

TINY: dict[str, Any] = {
    "data.num-clients": 4,
    "data.train-per-client": 60,
    "data.test-per-client": 10,
    "extractor.rounds": 8,
    "extractor.batch-size": 8,
    "extractor.widths": "8,8",
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.methods": "federated,rolling,global",
    "gate.rounds": 4,
    "gate.cycles": 1,
    "gate.local-steps": 1,
    "run.controls": "fedavg,local-classifier",
    "run.checkpoint-every": 2,
    "run.evaluate-every": 4,
}
FEDSC: dict[str, Any] = {
    "extractor.method": "fedsc",
    "extractor.server-optimizer": "adamw",
    "contrast.dim": 8,
    "contrast.hidden": 16,
    "contrast.probe-images": 40,
    "gate.methods": "local,federated",
    "run.controls": "",
}
PRIVATE = FEDSC | {
    "privacy.enabled": True,
    "contrast.first": 1,
    "privacy.delta": 1e-3,
    "privacy.releases": 3,
}


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.stem}/{name}": array
        for path in sorted((folder / "weights").iterdir())
        for name, array in files.load_arrays(path).items()
    }


def outcome(folder: Path) -> dict[str, Any]:
    """All of results.json but the seconds."""
    results = json.loads((folder / "results.json").read_text())
    del results["seconds"]
    for cost in results["stages"].values():
        del cost["seconds"]
    return dict(results)


def records(folder: Path) -> list[dict[str, Any]]:
    """All of rounds.jsonl but the seconds that a watch measured."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"].pop("seconds", None)
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_equal_runs(folder: Path, like: Path, *, least: int = 6) -> None:
    """The same weights, at ``least`` so many, results and records, so every round exactly once."""
    ours, theirs = weights(folder), weights(like)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= least
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.tobytes() == theirs[name].tobytes(), name
    assert outcome(folder) == outcome(like)
    assert records(folder) == records(like)


def releases(folder: Path) -> dict[str, bytes]:
    """What every client keeps of its private matrices, and its ledger."""
    kept = sorted(folder.glob("clients/*/correlation-*")) + sorted(folder.glob("clients/*/*.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def assert_equal_releases(folder: Path, like: Path, *, rounds: list[int]) -> None:
    """The same matrices in the same rounds, each paid for once."""
    ours, theirs = releases(folder), releases(like)
    names = [f"correlation-{r:06d}.safetensors" for r in rounds] + ["privacy.json"]
    assert sorted(ours) == sorted(f"clients/{p}/{name}" for p in range(4) for name in names)
    assert ours.keys() == theirs.keys()
    for name, content in ours.items():
        assert content == theirs[name], name
        if name.endswith("privacy.json"):
            ((history,),) = [json.loads(content)["spent"].values()]
            assert [count for _, count in history] == [len(rounds)]


def damage_newest(folder: Path) -> Path:
    """Flip one bit in the middle of the newest checkpoint."""
    newest = max((folder / "checkpoints").glob("step-*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    return newest


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# --- a process, killed ----------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, cache: Path) -> Path:
    """Where processes work; images are decoded once for all of them."""
    (tmp_path / "cache").symlink_to(cache)
    return tmp_path


def kill_at(folder: Path, stage: str, round: int, *arguments: str) -> None:
    """Start a run and SIGKILL it when rounds.jsonl tells of this round, of whatever attempt."""
    sign = f'"stage": "{stage}", "round": {round},'.encode()
    command = ("run", "--no-figures", *arguments)
    with Nmoe(folder.parent.parent, *command, halt_at=f"{stage} {round}") as process:
        process.kill_once(folder / "rounds.jsonl", sign)
    assert not (folder / "results.json").exists()


def finish(folder: Path, *arguments: str) -> None:
    with Nmoe(folder, "run", "--no-figures", *arguments) as process:
        process.finish()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_run_killed_three_times_ends_bit_equal(home: Path) -> None:
    changed = {"extractor.rounds": 30, "gate.rounds": 30, "run.checkpoint-every": 3}
    recipe = [f"{key}={value}" for key, value in (TINY | changed).items()]
    straight, killed = home / "runs" / "straight", home / "runs" / "killed"
    new = ["--workers", "0", "--name", "killed", "--set", *recipe]
    kill_at(killed, "extractor", 8, *new)
    resume = ["--resume", str(killed), "--workers"]
    kill_at(killed, "extractor", 20, *resume, "1")
    damaged = damage_newest(killed)
    kill_at(killed, "gate/federated", 10, *resume, "0")
    finish(home, *resume, "0")
    go_on(straight, home / "cache", never, **changed)

    assert damaged.name not in {path.name for path in (killed / "checkpoints").iterdir()}
    assert_equal_runs(killed, straight)
    rounds = [r["round"] for r in records(killed) if r["stage"] == "extractor"]
    assert rounds == list(range(1, 31))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_private_run_killed_in_stage_one_forgets_no_release(home: Path) -> None:
    """Ten releases are all that the budget allows: one paid for twice would be the last."""
    changed = PRIVATE | {
        "extractor.rounds": 20, "privacy.releases": 10, "run.checkpoint-every": 3,
        "gate.methods": "local",
    }  # fmt: skip
    recipe = [f"{key}={value}" for key, value in (TINY | changed).items()]
    straight, killed = home / "runs" / "straight", home / "runs" / "killed"
    new = ["--workers", "0", "--name", "killed", "--set", *recipe]
    kill_at(killed, "extractor", 8, *new)
    spent = json.loads((killed / "clients" / "0" / "privacy.json").read_text())["spent"]
    assert spent["0"][0][1] == 4  # rounds 1, 3, 5 and 7
    finish(home, "--resume", str(killed), "--workers", "0")
    go_on(straight, home / "cache", never, **changed)

    assert_equal_runs(killed, straight)
    assert_equal_releases(killed, straight, rounds=list(range(1, 20, 2)))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_an_alignment_run_killed_in_training_goes_on_with_its_assignments(home: Path) -> None:
    """Fitness, usage, deficits, loads, devices' clock and lots: the audit tells of all of them."""
    aligned = {
        "run.system": "aligned", "run.controls": "", "data.scheme": "pathological",
        "alignment.rounds": 30, "alignment.local-steps": 1, "alignment.batch-size": 8,
        "alignment.devices": "laptop,board", "alignment.exploration": 0.1,
        "alignment.gate": "averaged", "run.checkpoint-every": 3, "alignment.evaluate-every": 10,
    }  # fmt: skip
    recipe = [f"{key}={value}" for key, value in (TINY | aligned).items()]
    straight, killed = home / "runs" / "straight", home / "runs" / "killed"
    new = ["--workers", "0", "--name", "killed", "--set", *recipe]
    kill_at(killed, "alignment", 8, *new)
    finish(home, "--resume", str(killed), "--workers", "0")
    go_on(straight, home / "cache", never, **aligned)

    assert_equal_runs(killed, straight)
    trained = [r for r in records(killed) if r["stage"] == "alignment"]
    assert [r["round"] for r in trained] == list(range(1, 31))
    assert all(len(r["audit"]["clients"]) == 4 for r in trained)


SYSTEMS: dict[str, dict[str, Any]] = {
    **{system: {"run.system": system} for system in BASELINES},
    "fedjets": {"run.system": "fedjets", "baseline.anchors": False},
    "fedjets with anchors": {"run.system": "fedjets", "data.scheme": "pathological"},
    "pfedmoap": {"run.system": "pfedmoap", **GIVEN},
}
KILLED_IN = {"fedmoe": 14, "fedmoe-da": 9}  # of all others 6
HOLDS = KEEPS | {"fedmoe", "fedmoe-da"}  # the last two: which experts they were sent


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("case", SYSTEMS)
def test_a_published_system_killed_in_training_goes_on_with_what_its_clients_kept(
    home: Path, case: str
) -> None:
    """Half the clients take part: what one kept last is often older than the checkpoint.

    Killed in round 6, it goes on after 4. The server's scores, deficits or rows must come back.
    FedMoE's clients trade experts from round 13 on and FedMoE-DA's are mixed anew in round 9: each
    is killed when it has just done that, and must do the same again.
    """
    killed_in = KILLED_IN.get(case, 6)
    changed = {
        "run.controls": "", "extractor.backbone": "mlp", "extractor.widths": "8",
        "baseline.rounds": killed_in + 2, "baseline.local-steps": 2, "baseline.batch-size": 8,
        "baseline.tuning-steps": 5, "baseline.fraction-train": 0.5, "baseline.evaluate-every": 4,
        "run.checkpoint-every": 4, **SYSTEMS[case],
    }  # fmt: skip
    recipe = [f"{key}={value}" for key, value in (TINY | changed).items()]
    straight, killed = home / "runs" / "straight", home / "runs" / "killed"
    kill_at(killed, "baseline", killed_in, "--workers", "0", "--name", "killed", "--set", *recipe)
    if case == "fedmoe":
        assert any(len(experts) > 1 for experts in held_by_clients(killed))
    if case == "fedmoe-da":
        newest = max((killed / "checkpoints").glob("step-*.safetensors"))
        assert files.load_arrays(newest)["strategy/age"] == 5  # rounds, then it is refreshed
    finish(home, "--resume", str(killed), "--workers", "0")
    go_on(straight, home / "cache", never, **changed)

    assert_equal_runs(killed, straight, least=2)
    trained = [r for r in records(killed) if r["stage"] == "baseline"]
    assert [r["round"] for r in trained] == list(range(1, killed_in + 3))
    cohorts = {tuple(r["clients"]) for r in trained}
    assert len(cohorts) > 1
    assert {len(cohort) for cohort in cohorts} == {2}
    ours, theirs = (last_kept(folder) for folder in (killed, straight))
    assert ours == theirs
    assert len(ours) == (4 if changed["run.system"] in HOLDS else 0)


def last_kept(folder: Path) -> dict[str, bytes]:
    """What each client of a published system kept in its last round."""
    newest = [paths[-1] for paths in kept_by_clients(folder) if paths]
    return {str(path.relative_to(folder)): path.read_bytes() for path in newest}


def kept_by_clients(folder: Path) -> list[list[Path]]:
    """By client: what it has of a published system's rounds, the oldest first."""
    clients = [folder / "clients" / str(client) for client in range(4)]
    return [sorted(client.glob("baseline-*.safetensors")) for client in clients]


def held_by_clients(folder: Path) -> list[set[tuple[int, ...]]]:
    """By client: which experts it held in the rounds that it has something of."""
    return [
        {tuple(files.load_arrays(path)["held"].tolist()) for path in paths}
        for paths in kept_by_clients(folder)
    ]


# --- every stage, and what else a run carries along -----------------------------------------------


class Stop(BaseException):
    """Stands in for the moment of death."""


def go_on(
    path: Path, cache: Path, stop: Callable[[Mapping[str, Any]], bool], **changed: Any
) -> None:
    """Begin or resume the run in ``path``; die after the record that ``stop`` accepts."""
    named = {"run.out": str(path.parent), "run.name": path.name, "data.cache-dir": str(cache)}
    config = Config.parse(TINY | changed | named)
    folder = (RunFolder.resume if path.exists() else lambda p: RunFolder.create(p, config))(path)

    def on_round(record: Mapping[str, Any]) -> None:
        if stop(record):
            raise Stop

    with InProcessGrid("nmoe_flower.client_app:app", 4, run_config=config.flat()) as grid:
        execute(grid, folder, on_round=on_round)


def never(record: Mapping[str, Any]) -> bool:
    return False


def at(stage: str, round: int = 1) -> Callable[[Mapping[str, Any]], bool]:
    return lambda record: (record["stage"], record["round"]) == (stage, round)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    path = tmp_path_factory.mktemp("runs") / "straight"
    go_on(path, cache, never)
    return path


@pytest.mark.parametrize(
    ("stage", "round"),
    [
        ("extractor", 8),
        ("extractor-test", 4),
        ("experts", 1),
        ("answers", 1),
        ("gate/federated", 3),
        ("gate/rolling", 3),
        ("controls", 1),
        ("evaluation", 1),
    ],
)
def test_stopped_in_any_stage(
    stage: str, round: int, straight: Path, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "stopped"
    with pytest.raises(Stop):
        go_on(path, cache, at(stage, round))
    assert not (path / "results.json").exists()
    go_on(path, cache, never)
    assert_equal_runs(path, straight)


def test_no_control_is_trained_twice(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the third client's: what two have trained is theirs, and so is the mixture."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    changed = {"run.controls": "local-classifier,centralized", "gate.methods": "local"}
    go_on(straight, cache, never, **changed)
    trained: list[str] = []

    def watched(name: str) -> Callable[[Device, int], control.Answers]:
        train = getattr(control, name)

        def counted(device: Device, steps: int) -> control.Answers:
            trained.append(f"{name} {device.partition}")
            if len(trained) == 4:
                raise KeyboardInterrupt
            answers: control.Answers = train(device, steps)
            return answers

        return counted

    for name in ("_local_classifier", "_centralized"):
        monkeypatch.setattr(control, name, watched(name))
    with pytest.raises(KeyboardInterrupt):
        go_on(stopped, cache, never, **changed)
    go_on(stopped, cache, never, **changed)
    again = trained.pop(3)
    assert trained.count(again) == 1
    assert sorted(trained) == ["_centralized 0", *(f"_local_classifier {i}" for i in range(4))]
    assert_equal_runs(stopped, straight, least=2)


@pytest.mark.parametrize(
    "changed",
    [
        {"extractor.reading": "private-heads", "extractor.fraction-train": 0.5},
        {"extractor.ema": 0.9, "extractor.momentum-at": "averaged"},
        {"expert.sharing": "latents", "gate.rolling": "federated", "gate.noisy": True},
        FEDSC | {"extractor.fraction-train": 0.5, "contrast.running": 0.5, "contrast.refresh": 2},
        FEDSC | {"contrast.exchange": "two-phase", "contrast.share": "schedule"},
        PRIVATE,
    ],
    ids=["private heads", "averages", "latents", "fedsc", "two-phase", "private fedsc"],
)
def test_what_else_is_carried_from_round_to_round(
    changed: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    """Stopped in round 7 with checkpoints of 4 and 6; if that of 6 is damaged, 4 is the start."""
    straight, whole, damaged = (tmp_path / name for name in ("straight", "whole", "damaged"))
    go_on(straight, cache, never, **changed)
    with pytest.raises(Stop):
        go_on(whole, cache, at("extractor", 7), **changed)
    shutil.copytree(whole, damaged)
    damage_newest(damaged)
    for folder, first in ((whole, 7), (damaged, 5)):
        begun: list[int] = []

        def note(record: Mapping[str, Any], begun: list[int] = begun) -> bool:
            begun.append(record["round"])
            return False

        go_on(folder, cache, note, **changed)
        assert begun[0] == first
        assert_equal_runs(folder, straight)
        if changed is PRIVATE:
            assert_equal_releases(folder, straight, rounds=[1, 4, 7])


def test_what_was_found_out_about_fedsc_outlives_its_stage(cache: Path, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    go_on(straight, cache, never, **PRIVATE)
    with pytest.raises(Stop):
        go_on(stopped, cache, at("experts"), **PRIVATE)
    go_on(stopped, cache, never, **PRIVATE)
    assert_equal_runs(stopped, straight)
    assert_equal_releases(stopped, straight, rounds=[1, 4, 7])


def test_a_secure_run_is_not_repeated_and_its_releases_are(cache: Path, tmp_path: Path) -> None:
    """What was sent before the run was stopped is sent again; the rest is drawn anew."""
    changed = PRIVATE | {"privacy.secure": True}
    stopped = tmp_path / "stopped"
    with pytest.raises(Stop):
        go_on(stopped, cache, at("extractor", 5), **changed)  # the newest checkpoint is of 4
    for checkpoint in (stopped / "checkpoints").iterdir():
        checkpoint.unlink()
    before = {name: data for name, data in releases(stopped).items() if "json" not in name}
    assert len(before) == 4 * 2
    go_on(stopped, cache, never, **changed)
    after = releases(stopped)
    assert {name: after[name] for name in before} == before
    assert_equal_releases(stopped, stopped, rounds=[1, 4, 7])


def test_a_run_goes_on_with_no_other_settings(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "stopped"
    with pytest.raises(Stop):
        go_on(path, cache, at("extractor", 7))
    text = (path / "config.toml").read_text()
    (path / "config.toml").write_text(text.replace("tau = 0.3", "tau = 0.2"))
    with pytest.raises(CheckpointError, match=r"config\.toml was changed(.|\n)*data\.tau: trained"):
        go_on(path, cache, never)


def test_without_a_whole_checkpoint_the_run_starts_anew(
    straight: Path, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "stopped"
    with pytest.raises(Stop):
        go_on(path, cache, at("extractor", 7))
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    go_on(path, cache, never)
    assert_equal_runs(path, straight)
