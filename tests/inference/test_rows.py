"""A bundle that was trained on a table answers rows of tables, standardised as in training."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.cli import main
from nmoe_flower.config import Config
from nmoe_flower.data import normalise, standardise
from nmoe_flower.data.opening import features_of
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.inference.ask.client import Client
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.protocol.peers import PeerList
from nmoe_flower.models import Expert, Gate, configured_extractor

ROWS = np.array([[1.0, 1e6, -3.0], [2.0, 2e6, 5.0], [0.5, 0.0, 7.25]])
TABLE = {
    "data.kind": "features",
    "data.dataset": "machines.csv",
    "data.feature-columns": "a,b,c",
    "data.feature-means": "1,1e6,0",
    "data.feature-deviations": "1,1e6,4",
    "data.num-clients": 2,
    "extractor.backbone": "mlp",
    "extractor.widths": "8,8",
    "expert.hidden": "8",
}


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    config = Config.parse(TABLE)
    return Bundle.write(
        tmp_path / "bundle",
        partition=0,
        config=config,
        classes=["well", "worn"],
        image_shape=(3, 1, 1),
        extractor=arrays(configured_extractor(config, (3, 1, 1))),
        gate=arrays(Gate(8, 2)),
        expert=arrays(Expert(8, 2, hidden=(8,))),
    )


def write(path: Path, rows: np.ndarray, names: str = "cabx") -> Path:
    """A CSV with its columns in another order, and one that nobody asked for."""
    places = {"a": 0, "b": 1, "c": 2}
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(names)
        for row in rows.tolist():
            lines.writerow([row[places[name]] if name in places else "?" for name in names])
    return path


def infer(capsys: pytest.CaptureFixture[str], bundle: Bundle, *sources: Path) -> Any:
    code = main(["infer", str(bundle.folder), *map(str, sources)])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_rows_are_standardised_by_name(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = infer(capsys, bundle, write(tmp_path / "today.csv", ROWS))
    assert code == 0
    assert [line["image"] for line in lines] == [f"{tmp_path / 'today.csv'}[{i}]" for i in range(3)]
    scaled = (ROWS - [1, 1e6, 0]) / [1, 1e6, 4]
    with torch.inference_mode():
        latents = bundle.extractor()(torch.tensor(scaled, dtype=torch.float32)[:, :, None, None])
        wanted = bundle.expert()(latents).softmax(dim=1)
    for line, row in zip(lines, wanted.numpy(), strict=True):
        assert line["class"] == ("well", "worn")[row.argmax()]
        assert line["probability"] == pytest.approx(row.max(), abs=1e-5)


def test_a_folder_of_tables_and_bad_ones(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    write(folder / "1.csv", ROWS)
    np.savez(folder / "2.npz", a=ROWS[:, 0], b=ROWS[:, 1], c=ROWS[:, 2])
    write(folder / "3.csv", ROWS, "ab")
    bad = ROWS.copy()
    bad[1, 2] = np.nan
    write(folder / "4.csv", bad)
    (tmp_path / "empty").mkdir()
    code, lines = infer(capsys, bundle, folder, tmp_path / "empty", tmp_path / "gone.csv")
    assert code == 1
    answers = [line for line in lines if "error" not in line]
    assert [line["class"] for line in answers[:3]] == [line["class"] for line in answers[3:]]
    errors = [line["error"] for line in lines if "error" in line]
    assert "3.csv has no column 'c' (data.feature-columns); the columns are a, b" in errors[0]
    assert "row 1 of 4.csv has 'nan' in column 'c'" in errors[1]
    assert "the folder has no file .csv" in errors[2]
    assert "No such file" in errors[3]


@pytest.mark.parametrize(
    "rows", [ROWS[:, :2], ROWS[0], ROWS[:, :, None], np.full((2, 3), "x"), ROWS.astype(complex)]
)
def test_other_rows_are_refused(bundle: Bundle, rows: np.ndarray) -> None:
    with (
        Client(bundle, PeerList(())) as client,
        pytest.raises(DataError, match=r"allowed: numbers of shape \[B, 3\], the columns a, b, c"),
    ):
        client.predict(rows)


def test_a_configuration_without_statistics_is_refused() -> None:
    values = {key: value for key, value in TABLE.items() if not key.startswith("data.feature")}
    with pytest.raises(ConfigError, match=r"data.feature-columns, -means and -deviations are empt"):
        features_of(Config.parse(values).data)
    features = features_of(Config.parse(TABLE).data)
    assert normalise(standardise(ROWS, features)).shape == (3, 3, 1, 1)
