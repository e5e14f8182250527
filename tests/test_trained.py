"""A finished run's mixture in one process answers as the devices did."""

from pathlib import Path

import pytest
import torch

import nmoe_flower as nmoe
from nmoe_flower.data import configured_images, configured_partition, normalise
from nmoe_flower.errors import CheckpointError, ConfigError
from nmoe_flower.files import save_arrays
from nmoe_flower.models import LocalGate, combine

SMALL = {
    "data.num-clients": 3, "data.crop-padding": 0, "extractor.rounds": 2,
    "extractor.backbone": "linear", "expert.epochs": 1, "expert.hidden": 4, "gate.rounds": 2,
    "gate.methods": "rolling,federated,local", "gate.cycles": 1, "gate.top-k": 2,
    "run.controls": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, warm_cache: Path) -> nmoe.RunResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NMOE_CACHE", str(warm_cache))
        out = tmp_path_factory.mktemp("runs")
        return nmoe.run(SMALL, workers=0, out=out, progress=None, figures=False)


@pytest.mark.parametrize("gate", ["rolling", "federated", "local"])
def test_it_answers_as_the_devices_did(
    run: nmoe.RunResult, gate: str, warm_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMOE_CACHE", str(warm_cache))
    config = run.folder.config
    data = configured_images(config)
    rows = {(row["gate"], row["test"]): row for row in run.results["rows"]}
    mixture = nmoe.load_mixture(run.path, gate="federated" if gate == "local" else gate)
    for client, indices in enumerate(configured_partition(config, data, num_clients=3)):
        if gate == "local":
            mixture = nmoe.NMoE(mixture.extractor, LocalGate(client), mixture.pool)
        for test, ids in (("local", indices.test_local), ("iid", indices.test_iid)):
            found = mixture(normalise(data.test.images[ids])).probabilities.argmax(dim=1)
            right = (found == torch.from_numpy(data.test.labels[ids])).float().mean()
            assert float(right) == pytest.approx(rows[gate, test]["per_client"]["accuracy"][client])


def test_its_parts_answer_step_by_step(run: nmoe.RunResult) -> None:
    mixture = nmoe.load_mixture(str(run.path))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = mixture.extractor(images)
    routing = mixture.gate.route(latents)
    answers = mixture.pool(latents, routing.expert_ids)
    whole = mixture(images)
    assert routing.expert_ids.shape == (4, 2)
    by_hand = combine(answers, routing.weights)  # whose layers may run in another kernel
    assert torch.allclose(whole.probabilities, by_hand, rtol=0, atol=1e-6)
    assert not mixture.training
    assert not any(p.requires_grad for p in mixture.parameters())


def test_what_cannot_be_loaded_is_named(run: nmoe.RunResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weights of the gate 'local'; allowed: federated, ro"):
        nmoe.load_mixture(run.path, gate="local")
    with pytest.raises(ConfigError, match=r"no weights of the gate '\.\./extractor'"):
        nmoe.load_mixture(run.path, gate="../extractor")
    with pytest.raises(CheckpointError, match="is no folder of a finished run"):
        nmoe.load_mixture(tmp_path)


def test_damaged_weights_are_named(run: nmoe.RunResult, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(run.path, tmp_path / "run")
    expert = folder / "clients" / "2" / "expert.safetensors"
    save_arrays(expert, {"strange": torch.zeros(2).numpy()})
    with pytest.raises(CheckpointError, match=r"expert.safetensors does not fit .*config.toml"):
        nmoe.load_mixture(folder)
    expert.unlink()
    with pytest.raises(CheckpointError, match=r"clients/2/expert.safetensors does not exist"):
        nmoe.load_mixture(folder)
    config = nmoe.Config.parse({**run.folder.config.flat(), "run.system": "aligned"})
    (folder / "config.toml").write_text(config.to_toml())
    with pytest.raises(ConfigError, match=r"run\.system = 'aligned', whose clients"):
        nmoe.load_mixture(folder)
