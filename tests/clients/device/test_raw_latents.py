import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.clients.device import Device, Store, predict
from nmoe_flower.clients.device.raw_latents import LatentFile
from nmoe_flower.config import Config
from nmoe_flower.errors import ConfigError
from nmoe_flower.models import PretrainedExtractor

FIVE = np.arange(5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


def device(cache: Path, client: int = 0, **values: Any) -> Device:
    config = Config.parse(
        {
            "data.cache-dir": str(cache), "data.num-clients": 3, "extractor.method": "pretrained",
            "extractor.backbone": "tests.given_backbone:Tiny", "run.precision": "float32",
        }
        | {key.replace("_", "-").replace("-", ".", 1): value for key, value in values.items()}
    )  # fmt: skip
    return Device(config, client, 3, Store(cache / "store"))


def asked(device: Device, rows: np.ndarray = FIVE) -> tuple[torch.Tensor, int]:
    """Latents of training images, and how many images the backbone looked at for them."""
    extractor = device.extractor()
    assert isinstance(extractor, PretrainedExtractor)
    before = extractor.backbone._network.passes
    found = predict(device, extractor, device.data.train.images, rows)
    return found, extractor.backbone._network.passes - before


@pytest.fixture
def fresh(cache: Path) -> Path:
    shutil.rmtree(cache / "latents", ignore_errors=True)
    return cache


def files(cache: Path) -> list[Path]:
    return sorted((cache / "latents").glob("*/*.rows"))


def test_rows_are_computed_once_for_every_client_seed_and_run(fresh: Path) -> None:
    first, looked = asked(device(fresh))
    assert looked > 0
    again, none = asked(device(fresh, client=2, run_seed=7, data_tau=0.5))
    assert none == 0
    assert torch.equal(first, again)
    more, some = asked(device(fresh), np.arange(3, 8))
    assert some > 0
    assert torch.equal(more[:2], first[3:])


def test_components_are_of_the_same_rows(fresh: Path) -> None:
    whole, looked = asked(device(fresh))
    assert looked > 0
    reducing = device(fresh, head_method="sums", head_components=2, expert_hidden="")
    extractor = reducing.finished_classifier().extractor
    assert isinstance(extractor, PretrainedExtractor)
    assert extractor.latent_dim == 2
    before = extractor.backbone._network.passes
    reduced = predict(reducing, extractor, reducing.data.train.images, FIVE)
    assert extractor.backbone._network.passes == before
    assert torch.equal(reduced, whole[:, :2])  # the first two, until sums tell which
    again, none = asked(device(fresh))
    assert none == 0
    assert torch.equal(again, whole)


def test_a_latent_does_not_depend_on_the_company_it_is_computed_in(fresh: Path) -> None:
    together, _ = asked(device(fresh), np.arange(150))
    shutil.rmtree(fresh / "latents")
    backwards, _ = asked(device(fresh), np.arange(150)[::-1].copy())
    assert torch.equal(together, backwards.flip(0))
    shutil.rmtree(fresh / "latents")
    alone, _ = asked(device(fresh), np.array([77]))
    assert torch.equal(together[77:78], alone)


def test_what_is_kept_is_what_the_extractor_says_in_half_precision(fresh: Path) -> None:
    mine = device(fresh)
    from nmoe_flower.data import normalise

    images = normalise(np.asarray(mine.data.train.images[FIVE]))
    found, _ = asked(mine)
    wanted = mine.extractor()(images)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(found, found.half().float())


@pytest.mark.parametrize("damage", ["bits", "torn", "empty", "longer"])
def test_damaged_rows_are_computed_again(fresh: Path, damage: str) -> None:
    before, _ = asked(device(fresh))
    (path,) = files(fresh)
    data = bytearray(path.read_bytes())
    data[5] ^= 4  # of the first row
    path.write_bytes(
        {"bits": bytes(data), "torn": bytes(data[:7]), "empty": b"", "longer": bytes(data) + b"x"}[
            damage
        ]
    )
    after, looked = asked(device(fresh))
    assert looked > 0
    assert torch.equal(before, after)


def test_a_folder_that_cannot_be_made_costs_time_only(
    fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (fresh / "latents").write_text("in the way")
    found, looked = asked(device(fresh))
    (fresh / "latents").unlink()
    assert looked > 0
    assert "latents are not kept" in caplog.text
    assert torch.equal(found, asked(device(fresh))[0])


def test_a_disk_that_is_full_costs_time_only(
    fresh: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    wanted, _ = asked(device(fresh))
    shutil.rmtree(fresh / "latents")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        found, _ = asked(device(fresh))
    assert torch.equal(found, wanted)
    assert "No space left on device" in caplog.text


def test_two_writers_of_a_file_leave_every_row_whole(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.rows", np.arange(6)
    values = np.arange(24, dtype=np.float16).reshape(6, 4)
    one, two = (LatentFile(path, rows=6, width=4) for _ in range(2))
    one.put(rows[:4], values[:4])
    two.put(rows[2:5], values[2:5])
    found, there = one.get(rows)
    assert there.tolist() == [True] * 5 + [False]
    np.testing.assert_array_equal(found[:5], values[:5])


def test_numbers_too_large_for_half_precision_are_refused(fresh: Path) -> None:
    huge = device(fresh, extractor_backbone="tests.given_backbone:Huge")
    with pytest.raises(ConfigError, match=r"Huge: a latent has the number .* up to 65504"):
        asked(huge)


def test_other_images_are_not_kept(fresh: Path) -> None:
    mine = device(fresh)
    copied = np.array(mine.data.train.images[:3])
    predict(mine, mine.extractor(), copied, np.arange(3))
    assert files(fresh) == []


def test_renamed_classes_leave_latents_what_they_are(fresh: Path) -> None:
    """Other names for the classes are other data with the same images."""
    natural = {"data_scheme": "natural", "data_domains": "clean,invert,rot90"}
    first, looked = asked(device(fresh, **natural))
    renamed = device(fresh, **natural, data_renamings=3)
    assert renamed.data.fingerprint != device(fresh, **natural).data.fingerprint
    again, none = asked(renamed)
    assert looked > 0 == none
    assert torch.equal(first, again)
