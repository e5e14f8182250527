"""Folders that bundles are made from: one file tells them, before anything heavy is loaded."""

from pathlib import Path
from typing import Any

from nmoe_flower.catalogue import BASELINES
from nmoe_flower.config import Config
from nmoe_flower.errors import BundleError
from nmoe_flower.files import read_json
from nmoe_flower.inference.bundle.bundle_files import MANIFEST
from nmoe_flower.plurals import how_many, one_or_many

__all__ = ["bundled_run", "read_store", "refuse_left_over"]


def bundled_run(run_folder: Path) -> Config:
    """The configuration of a run of whose clients bundles can be made.

    Args:
        run_folder: The run's; whether it has finished is not looked at.

    Raises:
        BundleError: It is no folder of a run, or its clients have no expert of their own.
    """
    if not (run_folder / "config.toml").is_file():
        lacks = "has no config.toml" if run_folder.is_dir() else "is not a folder"
        raise BundleError(f"{run_folder} {lacks}: it is no folder of a run")
    config = Config.load(run_folder / "config.toml")
    _check_system(run_folder, config)
    return config


def read_store(store: Path) -> dict[str, Any]:
    """What the ``device.json`` of a device's store says of the run and of the device.

    Args:
        store: The run's folder in the ``store`` of the node config.

    Raises:
        BundleError: It is no store of a device, or stage 2 did not run there.
    """
    path = store / "device.json"
    if not path.is_file():
        raise BundleError(
            f"{store} is no store of a device: device.json is missing; did stage 2 run, with "
            "'store' in the node config?"
        )
    about = read_json(path, what="the store's", raises=BundleError)
    if not isinstance(about, dict):
        raise BundleError(f"{path} holds no object")
    return about


def refuse_left_over(out: Path, count: int) -> None:
    """Refuse a folder that would go on holding bundles of a run with more clients.

    Args:
        out: The folder of the bundles; it need not exist.
        count: Clients of the run that is bundled, whose bundles are 0 to ``count`` - 1.

    Raises:
        BundleError: There is a bundle of a later client.
    """
    there = out.expanduser().glob(f"*/{MANIFEST}")
    numbers = (path.parent.name for path in there)
    later = sorted(int(name) for name in numbers if name.isdecimal() and int(name) >= count)
    if later:
        told = f"{out / str(later[0])}" + (f" to {later[-1]}" if len(later) > 1 else "")
        raise BundleError(
            f"{out} holds bundles of a run with more clients, and this one has {count}: {told} "
            f"would stay beside its own; delete {one_or_many(len(later), 'it', 'these')} "
            f"({how_many(len(later), 'bundle')}), or give another --out"
        )


def _check_system(run_folder: Path, config: Config) -> None:
    """Refuse runs whose clients have no expert of their own, in words."""
    if config.run.system == "aligned":
        raise BundleError(
            f"{run_folder} is a run of the aligned system (run.system = 'aligned'), which has no "
            "bundles: its mixture is the server's, clients only borrow experts, and no device has "
            "one of its own to serve. The whole mixture is "
            f"{run_folder / 'weights' / 'mixture.safetensors'}; allowed: runs with "
            "run.system = 'networked' or 'language'"
        )
    if config.run.system in BASELINES:
        raise BundleError(
            f"{run_folder} is a run of run.system = {config.run.system!r}, whose networks no "
            "device serves; allowed: runs with run.system = 'networked' or 'language'"
        )
