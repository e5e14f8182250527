import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.infer import command
from benchmarks.infer.command import soak_line
from benchmarks.infer.encodings import bytes_per_sample, encoding_costs
from benchmarks.infer.load import LoadFigures, payload
from benchmarks.infer.soak import Soak
from nmoe_flower.config import Config
from nmoe_flower.files import load_arrays, save_arrays, write_text
from nmoe_flower.inference import export_run
from nmoe_flower.inference.protocol.peer_pb2 import PredictRequest
from nmoe_flower.models import Expert, Gate, build_extractor


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of two clients on the digits: untrained, with ten test latents each."""
    folder = tmp_path / "run"
    config = Config.parse({"data.num-clients": 2, "data.cache-dir": str(tmp_path / "cache")})
    write_text(folder / "config.toml", config.to_toml())
    rng = np.random.default_rng(0)

    def save(name: str, module: torch.nn.Module) -> None:
        state = {key: value.numpy() for key, value in module.state_dict().items()}
        save_arrays(folder / f"{name}.safetensors", state)

    save("weights/extractor", build_extractor("digits", in_channels=1, image_size=8))
    save("weights/gate-federated", Gate(64, 2))
    for client in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(client)
            expert = Expert(64, 10)
            torch.nn.init.normal_(expert.layers[-1].weight)
        save(f"clients/{client}/expert", expert)
        latents = rng.normal(size=(10, 64)).astype(np.float32)
        arrays = {
            "local": latents, "iid": latents,
            "local-labels": np.arange(10), "iid-labels": np.arange(10)[::-1],
        }  # fmt: skip
        save_arrays(folder / f"clients/{client}/latents.safetensors", arrays)
    return folder


def test_figures_by_hand() -> None:
    """Blocks of 10 requests in 1, 2 and 4 s against 2, 2 and 2 s: quotients 2, 1 and 0.5."""
    ours = LoadFigures("peer", 5, 1, 10, [1.0, 2.0, 4.0], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    raw = LoadFigures("echo", 5, 1, 10, [2.0, 2.0, 2.0], [0.1] * 3, [0.1])
    assert ours.requests_per_second == 5
    assert ours.ratio_to(raw) == 1
    assert raw.ratio_to(ours) == 1
    assert ours.cpu_per_sample == pytest.approx(0.6e6 / 150)
    assert ours.quantile(0.5) == pytest.approx(200)
    found = ours.as_json({"echo": raw})
    assert found["samples-per-second"] == 25
    assert found["ratio-to-echo"] == 1


def test_the_payload_is_a_real_request(run_folder: Path, tmp_path: Path) -> None:
    bundle = export_run(run_folder, tmp_path / "out")[0]
    request = PredictRequest.FromString(payload(bundle, 64))
    assert request.latents.rows == 64
    assert len(request.latents.data) == 64 * 64 * 4
    assert request.extractor_version == bundle.extractor_version


def test_bytes_per_sample_are_the_numbers_and_little_else() -> None:
    for dim in (64, 512):
        assert 4 * dim < bytes_per_sample(dim, "float32") < 4 * dim + 2
        assert 2 * dim < bytes_per_sample(dim, "float16") < 2 * dim + 2
        assert dim + 4 < bytes_per_sample(dim, "int8") < dim + 6  # a scale per row


def test_what_encodings_cost_is_measured_on_the_mixtures_answers(
    run_folder: Path, tmp_path: Path
) -> None:
    bundles = export_run(run_folder, tmp_path / "out")
    costs = encoding_costs(run_folder, bundles)
    by_name = {(cost.encoding, cost.split): cost for cost in costs}
    assert len(by_name) == 6
    for split in ("local", "iid"):
        exact = by_name["float32", split]
        assert (exact.loss, exact.changed, exact.largest_error) == (0, 0, 0)
        assert exact.samples == 20
        half, byte = by_name["float16", split], by_name["int8", split]
        assert 0 < half.largest_error < byte.largest_error
        for cost in (half, byte):
            assert cost.loss == pytest.approx(exact.accuracy - cost.accuracy)
    # A fresh gate scores all experts alike, and the first of them is asked.
    right = []
    for client in range(2):
        store = load_arrays(run_folder / f"clients/{client}/latents.safetensors")
        chosen = bundles[0].expert()(torch.from_numpy(store["local"])).argmax(dim=1).numpy()
        right.append((chosen == store["local-labels"]).mean())
    assert by_name["float32", "local"].accuracy == pytest.approx(np.mean(right))


def test_a_soak_from_start_to_end(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soak.json"
    assert command.main([str(run_folder), "--soak", "150", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["encrypted"] is True
    assert found["soak"]["queries"] == 150
    assert found["soak"]["errors"] == 0
    assert found["soak"]["last_bytes"] > 10_000_000  # a process that has loaded torch
    assert "150 queries in" in capsys.readouterr().out


def test_the_line_of_a_soak() -> None:
    line = soak_line(Soak(100_000, 2, 60.0, 300_000_000, 301_000_000, 12_500.0))
    assert line == (
        "100,000 queries in 60 s, 2 errors; memory 300.0 MB after a quarter, 301.0 MB at the "
        "end, slope +12.50 kB per 1,000 queries"
    )


@pytest.mark.parametrize("load", ["64", "x8", "0x8", "64x0", "300x1"])
def test_loads_that_are_not_allowed(load: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        command.main(["run", "--load", load])
    assert leaving.value.code == 2
    assert "usage: python -m benchmarks.infer" in capsys.readouterr().err
