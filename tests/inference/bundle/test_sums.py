"""A run from sums in the hands of devices: standardised latents and the gate lda go with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nmoe_flower as nmoe
from nmoe_flower import cli
from nmoe_flower.data import configured_images, configured_partition, normalise
from nmoe_flower.inference import Bundle, export_run
from nmoe_flower.models import DiscriminantGate, LocalExperts, NMoE

SETTINGS: dict[str, Any] = {
    "data.num-clients": 3, "extractor.method": "fedsc", "extractor.backbone": "linear",
    "extractor.rounds": 0, "head.method": "sums", "head.components": 20, "expert.hidden": "",
    "expert.epochs": 1, "gate.methods": "lda", "gate.top-k": 2, "gate.home-bias": 1.0,
    "run.controls": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, warm_cache: Path) -> nmoe.RunResult:
    out = tmp_path_factory.mktemp("runs")
    values = SETTINGS | {"data.cache-dir": str(warm_cache)}
    return nmoe.run(values, workers=0, out=out, progress=None, figures=False)


@pytest.fixture(scope="module")
def bundles(run: nmoe.RunResult, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    return export_run(run.path, tmp_path_factory.mktemp("bundles") / "out", gate="lda")


def test_bundles_hold_the_components_and_the_discriminants(
    run: nmoe.RunResult, bundles: list[Bundle]
) -> None:
    assert [bundle.latent_dim for bundle in bundles] == [20] * 3
    gate = bundles[0].gate()
    assert isinstance(gate, DiscriminantGate)
    assert (gate.num_experts, gate.top_k) == (3, 2)
    mixture = nmoe.load_mixture(run.path, gate="lda")
    together = NMoE(
        bundles[0].extractor(), gate, LocalExperts([bundle.expert() for bundle in bundles])
    )
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(together(images).probabilities, mixture(images).probabilities)


def test_a_loaded_mixture_answers_as_the_devices_did(run: nmoe.RunResult) -> None:
    from nmoe_flower.models import with_home_bias

    data = configured_images(run.folder.config)
    mixture = nmoe.load_mixture(run.path, gate="lda")
    (row,) = [r for r in run.results["rows"] if (r["gate"], r["test"]) == ("lda", "iid")]
    for client, indices in enumerate(configured_partition(run.folder.config, data, num_clients=3)):
        biased = NMoE(mixture.extractor, with_home_bias(mixture.gate, client, 1.0), mixture.pool)
        found = biased(normalise(data.test.images[indices.test_iid])).probabilities.argmax(dim=1)
        right = (found.numpy() == data.test.labels[indices.test_iid]).mean()
        assert float(right) == pytest.approx(row["per_client"]["accuracy"][client])


def test_a_device_asks_with_it(
    bundles: list[Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((2, 8, 8), np.uint8))
    assert cli.main(["infer", str(bundles[0].folder), str(images)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_gate_of_other_names_does_not_fit(bundles: list[Bundle], tmp_path: Path) -> None:
    bundle = bundles[0]
    state = bundle.gate().state_dict()
    with pytest.raises(nmoe.NMoEError, match=r"gate in .* does not fit"):
        Bundle.write(
            tmp_path / "odd",
            partition=0,
            config=bundle.config,
            classes=bundle.classes,
            image_shape=(1, 8, 8),
            extractor={k: v.numpy() for k, v in bundle.extractor().state_dict().items()},
            gate={"weight": state["weight"].numpy(), "bias": np.zeros(4, np.float32)},
            expert={k: v.numpy() for k, v in bundle.expert().state_dict().items()},
        )


def test_where_nothing_was_averaged_the_gate_there_is_goes_out(
    run: nmoe.RunResult, bundles: list[Bundle], tmp_path: Path
) -> None:
    found = export_run(run.path, tmp_path / "out")
    assert [b.gate_version for b in found] == [b.gate_version for b in bundles]
