import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower import cli
from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError
from nmoe_flower.files import load_arrays, save_arrays, write_json, write_text
from nmoe_flower.inference import Bundle, export_run
from nmoe_flower.models import Expert, Gate, build_extractor

MakeBundle = Callable[..., Bundle]


def change(folder: Path, **values: Any) -> None:
    path = folder / "bundle.json"
    write_json(path, {**json.loads(path.read_text()), **values})


def test_a_bundle_comes_back_as_it_was_written(make_bundle: MakeBundle) -> None:
    written = make_bundle(partition=1)
    loaded = Bundle.load(written.folder)
    assert loaded.manifest == written.manifest
    assert (loaded.partition, loaded.num_clients, loaded.latent_dim) == (1, 2, 4)
    assert loaded.classes == ["a", "b", "c"]
    latents = torch.arange(8.0).reshape(2, 4)
    assert torch.equal(loaded.extractor()(latents.view(2, 1, 2, 2)), latents)
    assert torch.equal(loaded.gate()(latents), torch.zeros(2, 2))  # a fresh gate is uniform
    state = load_arrays(written.folder / "expert.safetensors")
    hidden = latents @ torch.from_numpy(state["layers.0.weight"]).T
    logits = torch.nn.functional.gelu(hidden) @ torch.from_numpy(state["layers.2.weight"]).T
    torch.testing.assert_close(loaded.expert()(latents), logits)  # biases are zero
    assert not loaded.expert().training
    assert not any(p.requires_grad for p in loaded.expert().parameters())


def test_a_version_is_the_hash_of_the_file(make_bundle: MakeBundle) -> None:
    one, other = make_bundle("one"), make_bundle("other", seed=1)
    data = (one.folder / "expert.safetensors").read_bytes()
    assert one.expert_version == hashlib.sha256(data).hexdigest()[:16]
    assert one.expert_version != other.expert_version
    assert one.extractor_version == other.extractor_version
    assert one.gate_version == other.gate_version


@pytest.mark.parametrize("part", ["extractor", "gate", "expert"])
def test_damage_is_found(make_bundle: MakeBundle, part: str) -> None:
    bundle = make_bundle()
    path = bundle.folder / f"{part}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{part}\.safetensors has version .* damaged"):
        Bundle.load(bundle.folder)
    with pytest.raises(BundleError, match="damaged"):  # after it was loaded, too
        getattr(bundle, part)()
    path.unlink()
    with pytest.raises(BundleError, match=rf"cannot read .*{part}\.safetensors: No such file"):
        Bundle.load(bundle.folder)


def test_a_pipe_is_no_part_of_a_bundle(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    (bundle.folder / "gate.safetensors").unlink()
    os.mkfifo(bundle.folder / "gate.safetensors")
    with pytest.raises(BundleError, match=r"gate\.safetensors: it is no file"):
        Bundle.load(bundle.folder)


def test_a_link_out_of_the_folder_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    path = bundle.folder / "expert.safetensors"
    outside = tmp_path / "outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the folder"):
        Bundle.load(bundle.folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 2}, "format: "),
        ({"partition": 2}, "partition 2 of 2 clients"),
        ({"partition": -1}, "partition: "),
        ({"partition": True}, "partition: "),
        ({"partition": "0"}, "partition: "),
        ({"num_clients": 0}, "num_clients: "),
        ({"classes": []}, "classes: "),
        ({"classes": [1]}, "classes.0: "),
        ({"expert_version": "../../etc/passwd"}, "expert_version: "),
        ({"expert_version": "0" * 17}, "expert_version: "),
        ({"image_shape": [1, 2]}, "image_shape: "),
        ({"surprise": 1}, "surprise: "),
        ({"config": {"expert.hiden": 3}}, "config: .*did you mean hidden"),
        ({"config": {"gate.top-k": 5}}, "config: .*top-k is 5"),
        ({"config": []}, "config: "),
    ],
)
def test_a_manifest_holds_what_it_may(
    make_bundle: MakeBundle, values: dict[str, Any], message: str
) -> None:
    folder = make_bundle().folder
    change(folder, **values)
    with pytest.raises(BundleError, match=rf"bundle\.json: .*{message}"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is nested too deep"),
        ("[]", "valid dictionary"),
        ('{"format": NaN}', "NaN is no number of JSON"),
        ("\udcff", "is not UTF-8 text"),
    ],
)
def test_what_is_no_manifest(make_bundle: MakeBundle, text: str, message: str) -> None:
    folder = make_bundle().folder
    (folder / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read the bundle .*bundle\.json: No such file"):
        Bundle.load(tmp_path)


def test_weights_that_do_not_fit_are_not_written(make_bundle: MakeBundle, tmp_path: Path) -> None:
    good = make_bundle()
    before = sorted((p.name, p.read_bytes()) for p in good.folder.iterdir())
    parts = {
        part: load_arrays(good.folder / f"{part}.safetensors")
        for part in ("extractor", "gate", "expert")
    }
    parts["expert"]["layers.0.weight"] = np.zeros((8, 5), np.float32)
    with pytest.raises(BundleError, match=r"expert in .* does not fit its config"):
        Bundle.write(
            good.folder,
            partition=0,
            config=good.config,
            classes=good.classes,
            image_shape=(1, 2, 2),
            **parts,
        )
    assert sorted((p.name, p.read_bytes()) for p in good.folder.iterdir()) == before


# --- a finished run ---


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What `nmoe run` leaves for two clients on the digits, untrained."""
    folder = tmp_path / "run"
    config = Config.parse({"data.num-clients": 2, "data.cache-dir": str(tmp_path / "cache")})
    write_text(folder / "config.toml", config.to_toml())

    def save(name: str, module: torch.nn.Module) -> None:
        state = {key: value.numpy() for key, value in module.state_dict().items()}
        save_arrays(folder / f"{name}.safetensors", state)

    save("weights/extractor", build_extractor("digits", in_channels=1, image_size=8))
    save("weights/gate-federated", Gate(64, 2))
    for client in range(2):
        save(f"clients/{client}/expert", Expert(64, 10))
    return folder


def test_every_client_of_a_run_gets_a_bundle(run_folder: Path, tmp_path: Path) -> None:
    bundles = export_run(run_folder, tmp_path / "out")
    assert [bundle.folder for bundle in bundles] == [tmp_path / "out" / str(i) for i in range(2)]
    for client, bundle in enumerate(Bundle.load(bundle.folder) for bundle in bundles):
        assert (bundle.partition, bundle.latent_dim, bundle.num_clients) == (client, 64, 2)
        assert bundle.manifest.image_shape == [1, 8, 8]
        assert bundle.classes == [str(digit) for digit in range(10)]
        saved = load_arrays(run_folder / "clients" / str(client) / "expert.safetensors")
        for name, value in bundle.expert().state_dict().items():
            np.testing.assert_array_equal(value.numpy(), saved[name])
    assert bundles[0].extractor_version == bundles[1].extractor_version
    assert bundles[0].expert_version != bundles[1].expert_version


def test_the_command_names_what_it_wrote(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundles"
    assert cli.main(["bundle", str(run_folder), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    versions = [Bundle.load(out / str(client)).expert_version for client in range(2)]
    assert [line.split()[0] for line in lines] == [str(out / "0"), str(out / "1")]
    assert [line.split()[2] for line in lines] == versions
    assert cli.main(["bundle", str(run_folder), "--out", str(out), "--gate", "global"]) == 1
    assert "no weights of the gate 'global'; it has: federated" in capsys.readouterr().err


def test_bundles_of_more_clients_do_not_stay_beside_those_of_fewer(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundles"
    export_run(run_folder, out)
    shutil.copytree(out / "1", out / "2")
    before = (out / "0" / "bundle.json").stat().st_mtime_ns
    assert cli.main(["bundle", str(run_folder), "--out", str(out)]) == 1
    told = "with more clients, and this one has 2: "
    assert f"{told}{out / '2'} would stay beside its own; delete it" in capsys.readouterr().err
    assert (out / "0" / "bundle.json").stat().st_mtime_ns == before
    shutil.copytree(out / "1", out / "10")
    with pytest.raises(BundleError, match=r"2 to 10 would stay .* delete these \(2 bundles\)"):
        export_run(run_folder, out)
    shutil.rmtree(out / "2")
    shutil.rmtree(out / "10")
    (out / "3").mkdir()  # no bundle: none of our business
    assert len(export_run(run_folder, out)) == 2


@pytest.mark.parametrize("gate", ["rolling", "../extractor", ""])
def test_a_gate_the_run_does_not_have(run_folder: Path, tmp_path: Path, gate: str) -> None:
    with pytest.raises(BundleError, match=r"has no weights of the gate .*; it has: federated"):
        export_run(run_folder, tmp_path / "out", gate=gate)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no config\.toml: it is no folder of a run"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(BundleError, match="absent is not a folder: it is no folder of a run"):
        export_run(tmp_path / "absent", tmp_path / "out")


def test_bundles_are_written_all_or_none(run_folder: Path, tmp_path: Path) -> None:
    """The second client's expert does not fit: the first has no new bundle either."""
    export_run(run_folder, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    for client, classes in ((0, 10), (1, 9)):
        state = {key: value.numpy() for key, value in Expert(64, classes).state_dict().items()}
        save_arrays(run_folder / f"clients/{client}/expert.safetensors", state)
    for out in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(BundleError, match="does not fit its config"):
            export_run(run_folder, out)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    assert not (tmp_path / "new").exists()


def test_a_run_of_the_alignment_system_has_no_bundles(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.parse({"data.num-clients": 2, "run.system": "aligned"})
    write_text(run_folder / "config.toml", config.to_toml())
    assert cli.main(["bundle", str(run_folder), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "is a run of the aligned system (run.system = 'aligned'), which has no bundles" in told
    assert str(run_folder / "weights" / "mixture.safetensors") in told
    assert not (tmp_path / "out").exists()


def test_a_run_that_did_not_finish(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "clients" / "1" / "expert.safetensors").unlink()
    with pytest.raises(BundleError, match=r"cannot be exported: .* does not exist"):
        export_run(run_folder, tmp_path / "out")
    (run_folder / "weights" / "gate-federated.safetensors").unlink()
    with pytest.raises(BundleError, match="did the run finish"):
        export_run(run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
