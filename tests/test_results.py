import json
import logging

import numpy as np
import pytest

from nmoe_flower import files
from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.config import Config
from nmoe_flower.errors import CheckpointError, ConfigError, NMoEError
from nmoe_flower.results import FORMAT_VERSION, RunFolder, absolute_override, placed, shadowed

CONFIG = Config.parse({"data.tau": 0.2, "run.seed": 7, "run.keep-checkpoints": 3})


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "out" / "run", CONFIG)


def test_create_writes_the_configuration_and_where_the_run_comes_from(run):
    assert Config.load(run.path / "config.toml") == CONFIG
    provenance = run.provenance()
    assert provenance["seed"] == 7
    assert provenance["format-version"] == FORMAT_VERSION
    assert provenance["versions"].keys() == {
        "python", "torch", "flwr", "ray", "numpy", "nmoe-flower",
    }  # fmt: skip
    assert provenance["versions"]["numpy"] == np.__version__
    assert provenance["machine"]["cores"] >= 1
    assert provenance["started"].endswith("+00:00")
    assert run.checkpoints.keep == 3
    assert run.checkpoints.folder == run.path / "checkpoints"


def test_provenance_grows(run):
    run.set_provenance(data="abc", clients=np.int64(3))
    run.set_provenance(data="abcd")
    assert run.provenance()["data"] == "abcd"
    assert run.provenance()["clients"] == 3
    assert run.provenance()["seed"] == 7


@pytest.mark.parametrize(
    "present",
    [
        "rounds.jsonl", "results.json", "checkpoints/step-000001.safetensors",
        "clients/3/privacy.json",
    ],
)  # fmt: skip
def test_create_refuses_a_folder_with_a_run(tmp_path, present):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / present).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / present).write_text('{"stage": "extractor", "clients": [0]}\n')
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume.*--overwrite.*--name"):
        RunFolder.create(tmp_path, Config.parse({}))
    assert (tmp_path / "config.toml").read_text() == ""


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_has_lost_its_settings_is_neither_gone_on_with_nor_deleted(tmp_path, overwrite):
    run = RunFolder.create(tmp_path, Config.parse({}))
    run.append_round({"stage": "extractor", "round": 1, "clients": [0]})
    (tmp_path / "config.toml").unlink()
    with pytest.raises(ConfigError, match=r"has no config.toml, but rounds.jsonl: put it back"):
        RunFolder.create(tmp_path, Config.parse({}), overwrite=overwrite)
    assert (tmp_path / "rounds.jsonl").is_file()


def test_create_begins_a_run_anew_that_never_came_to_an_exchange(tmp_path):
    RunFolder.create(tmp_path, Config.parse({"run.seed": 1}))
    RunFolder.create(tmp_path, Config.parse({"run.seed": 2}))
    assert RunFolder.resume(tmp_path).config.run.seed == 2


def test_create_begins_a_run_anew_that_never_trained(tmp_path):
    """Clients said what they hold, and then all of them failed in the first round."""
    run = RunFolder.create(tmp_path, Config.parse({"run.seed": 1}))
    run.append_round({"stage": "describe", "round": 1, "clients": [0, 1]})
    run.append_round({"stage": "initial", "round": 1, "clients": [0]})
    run.append_round({"stage": "extractor", "round": 1, "clients": []})
    run.checkpoints.folder.mkdir()
    assert not RunFolder.has_trained(tmp_path)
    run = RunFolder.create(tmp_path, Config.parse({"run.seed": 2}))
    assert run.rounds() == []
    run.append_round({"stage": "extractor", "round": 1, "clients": [0]})
    assert RunFolder.has_trained(tmp_path)


def test_create_takes_up_after_a_create_that_was_killed(tmp_path):
    (tmp_path / "provenance.json").write_text("{}")
    RunFolder.create(tmp_path, CONFIG)
    assert RunFolder.resume(tmp_path).config == CONFIG


def test_overwrite_deletes_the_old_run_and_nothing_else(run):
    run.append_round({"round": 1})
    run.write_results({"rows": []})
    run.save_weights("extractor", {"x": np.zeros(1)})
    run.checkpoints.save(1, {}, {})
    (run.path / "notes.md").write_text("mine")
    RunFolder.create(run.path, CONFIG, overwrite=True)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.toml",
        "notes.md",
        "provenance.json",
    ]


@pytest.mark.parametrize("name", ["checkpoints", "clients", "weights", "tensorboard"])
def test_overwrite_removes_a_link_and_nothing_of_what_it_points_to(name, run, tmp_path):
    elsewhere = tmp_path / "another disk"
    Checkpoints(elsewhere).save(7, {}, {})
    (run.path / name).symlink_to(elsewhere)
    (run.path / "figures").symlink_to(tmp_path / "gone")
    again = RunFolder.create(run.path, CONFIG, overwrite=True)
    assert not (run.path / name).is_symlink()
    assert not (run.path / "figures").is_symlink()
    assert again.checkpoints.latest() is None
    assert Checkpoints(elsewhere).latest().step == 7


def test_resume_finds_the_run(run):
    again = RunFolder.resume(run.path)
    assert again.config == CONFIG
    again.check_config(CONFIG)


def damage_version(path):
    files.write_json(path / "provenance.json", {"format-version": 99})


def damage_json(path):
    (path / "provenance.json").write_text("{")


def damage_shape(path):
    (path / "provenance.json").write_text("[]")


def damage_config(path):
    (path / "config.toml").write_text("[gate]\ntop-q = 1\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_version, "format version 99; this nmoe-flower reads 1"),
        (damage_json, r"provenance\.json is not valid JSON"),
        (damage_shape, "does not hold a JSON object"),
        (damage_config, "top-q"),
        (lambda path: (path / "provenance.json").unlink(), r"provenance\.json"),
        (lambda path: (path / "config.toml").unlink(), r"has no config\.toml"),
    ],
)
def test_resume_refuses_what_it_cannot_read(run, damage, message):
    damage(run.path)
    with pytest.raises(CheckpointError, match=message):
        RunFolder.resume(run.path)


def test_resume_refuses_a_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing to resume: .*none is not a folder"):
        RunFolder.resume(tmp_path / "none")


def test_check_config_names_every_key_that_differs(run):
    other = Config.parse({"data.tau": 0.5, "run.seed": 8, "run.out": "x", "run.name": "y"})
    with pytest.raises(CheckpointError) as caught:
        run.check_config(other)
    lines = str(caught.value).splitlines()[1:]
    assert lines == [
        "data.tau: 0.2 in the folder, 0.5 asked for",
        "run.seed: 7 in the folder, 8 asked for",
    ]


def test_an_edited_configuration_is_not_what_a_checkpoint_was_trained_with(run):
    run.check_settings({})  # of an older version, which did not say
    run.check_settings(run.config.flat() | {"run.name": "moved", "run.keep-checkpoints": 9})
    with pytest.raises(CheckpointError) as caught:
        run.check_settings(run.config.flat() | {"data.tau": 0.5, "gone.key": 1})
    assert str(caught.value).splitlines()[1:] == ["data.tau: trained with 0.5, now 0.2"]


def test_rounds_come_back_in_order_and_a_cut_line_is_left_out(run, caplog):
    assert run.rounds() == []
    run.append_round({"round": 1, "loss": float("nan")})
    run.append_round({"round": 2, "loss": np.float32(0.5)})
    with run.rounds_path.open("a") as file:
        file.write('{"round": 3, "lo')
    with caplog.at_level(logging.WARNING):
        assert run.rounds() == [{"round": 1, "loss": None}, {"round": 2, "loss": 0.5}]
    assert "line 3 is damaged" in caplog.text
    run.append_round({"round": 3})
    assert [record["round"] for record in run.rounds()] == [1, 2, 3]


def test_a_line_cut_inside_a_letter_is_left_out(run):
    run.append_round({"reason": "é"})
    whole = run.rounds_path.read_bytes()
    run.rounds_path.write_bytes(whole + whole[: whole.index("é".encode()) + 1])
    assert run.rounds() == [{"reason": "é"}]


def test_truncate_drops_records_and_cut_lines(run):
    run.truncate_rounds(lambda _record: True)
    assert not run.rounds_path.exists()
    for number in range(5):
        run.append_round({"round": number})
    with run.rounds_path.open("a") as file:
        file.write("[1")
    run.truncate_rounds(lambda record: record["round"] <= 2)
    assert run.rounds_path.read_text() == '{"round": 0}\n{"round": 1}\n{"round": 2}\n'


def test_results_and_weights_are_written(run):
    run.write_results({"rows": [{"auc": float("nan"), "accuracy": np.float64(0.5)}]})
    rows = json.loads(run.results_path.read_text())["rows"]
    assert rows == [{"auc": None, "accuracy": 0.5}]
    path = run.save_weights("gate-federated", {"linear.weight": np.eye(3)})
    assert path == run.weights_path / "gate-federated.safetensors"
    np.testing.assert_array_equal(files.load_arrays(path)["linear.weight"], np.eye(3))
    with pytest.raises(NMoEError, match="leads out of the folder"):
        run.save_weights("../../x", {})


RELATIVE = {
    "data.cache-dir": "not/made/yet",
    "data.dataset": "photos",
    "extractor.start": "runs/first",
    "extractor.weights": "weights.gguf",
    "extractor.backbone": "transformers:./tiny",
    "text.tokenizer": "words/tokenizer.json",
    "alignment.trace": "trace.json",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, where all of RELATIVE is but the cache, which is made by a run."""
    place = tmp_path / "here"
    for name in ("photos", "runs/first", "tiny", "words"):
        (place / name).mkdir(parents=True)
    for name in ("weights.gguf", "words/tokenizer.json", "trace.json"):
        (place / name).write_text("{}")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("key", list(RELATIVE))
def test_a_run_names_all_it_reads_by_absolute_paths(key, here, tmp_path, monkeypatch):
    """So it goes on in another working directory; and the same words are the same setting."""
    config = Config.parse(OF[key] | {key: RELATIVE[key]})
    run = RunFolder.create(tmp_path / "run", placed(config, tmp_path / "run"))
    prefix, name = ("transformers:", "tiny") if "backbone" in key else ("", RELATIVE[key])
    assert run.config.flat()[key] == f"{prefix}{here / name}"
    assert absolute_override(f"{key}={RELATIVE[key]}") == f"{key}={prefix}{here / name}"
    run.check_config(config)
    run.check_settings(config.flat())
    monkeypatch.chdir(tmp_path)
    assert placed(run.config, run.path).flat() == run.config.flat()
    if key != "data.cache-dir":
        with pytest.raises(CheckpointError, match=f"{key}: "):
            run.check_config(config)


GIVEN = {"extractor.method": "pretrained", "extractor.backbone": "transformers:any"}
LANGUAGE = GIVEN | {
    "run.system": "language",
    "data.kind": "text",
    "data.scheme": "natural",
    "data.dataset": "./texts",
}
OF: dict[str, dict[str, str]] = {key: {} for key in RELATIVE} | {
    "extractor.weights": GIVEN,
    "extractor.backbone": GIVEN,
    "text.tokenizer": LANGUAGE,
    "alignment.trace": {"run.system": "aligned"},
}


@pytest.mark.parametrize(
    ("values", "folder"),
    [
        ({"data.dataset": "uoft-cs/cifar10"}, "uoft-cs/cifar10"),
        (GIVEN | {"extractor.weights": "some-model"}, "some-model"),
        (GIVEN | {"extractor.backbone": "transformers:me/tiny"}, "me/tiny"),
        (LANGUAGE | {"text.tokenizer": "gpt2"}, "gpt2"),
    ],
)
def test_a_folder_that_goes_before_a_name_on_the_hub_is_told(values, folder, here):
    config = Config.parse(values)
    assert shadowed(config) == []
    (here / folder).mkdir(parents=True)
    (here / "texts").mkdir()
    (note,) = shadowed(config)
    *_, key = values
    assert note.startswith(f"{key} = {values[key]} is the folder {here / folder}, which goes")
    typed = values[key].replace(folder, f"./{folder}")
    assert f"; {typed} says the same" in note
    assert shadowed(Config.parse(values | {key: typed})) == []
    assert shadowed(placed(config, here / "run")) == []


def test_what_comes_along_is_taken_whatever_folders_there_are(here):
    for name in ("digits", "bytes"):
        (here / name).mkdir()
    config = Config.parse(LANGUAGE | {"text.tokenizer": "bytes"})
    assert placed(config, here / "run").text.tokenizer == "bytes"
    assert placed(Config(), here / "run").data.dataset == "digits"
    assert shadowed(config) == []
    other = Config.parse(LANGUAGE | {"text.tokenizer": "digits"})
    assert placed(other, here / "run").text.tokenizer == str(here / "digits")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "x" * 300, "uoft-cs/cifar10"])
def test_a_name_that_is_no_path_stays_as_it_was_written(name):
    assert absolute_override(f"data.dataset={name}") == f"data.dataset={name}"
