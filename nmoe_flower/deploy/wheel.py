"""What the machines of a federation install: the wheel of the package that runs here.

The package is on no index. A machine that installed it by its name would run whatever somebody
puts there under that name. So every folder brings the wheel, its hash, and the versions of all
other packages as they are here::

    wheel/nmoe_flower-0.1.0-py3-none-any.whl
    wheel/SHA256SUMS        sha256sum -c checks the wheel
    wheel/constraints.txt   pip install -c: the versions that are installed here
"""

import base64
import csv
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import deque
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)

from nmoe_flower import __version__
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import write_bytes, write_text
from nmoe_flower.installation import NAME, checkout, installed_from

__all__ = [
    "CHECKSUMS",
    "CONSTRAINTS",
    "WHEEL",
    "copy_wheel",
    "wheel_name",
    "wheel_problem",
    "write_wheel",
]

WHEEL = "wheel"
CHECKSUMS = "SHA256SUMS"
CONSTRAINTS = "constraints.txt"

_EXTRAS = ("serve", "data", "privacy")  # what a device may need
_OF_TORCH = ("nvidia-", "cuda-", "triton")  # torch asks for its own, by machine
_BUILD_SECONDS = 300
_EPOCH = (2020, 2, 2, 0, 0, 0)  # of every file in a wheel that is packed here


def write_wheel(folder: Path, *, given: Path | None = None) -> Path:
    """Write the wheel that runs here, its hash and the constraints; return the wheel.

    Args:
        folder: Where to write; made if missing.
        given: A wheel of this version, to be taken instead.

    Raises:
        ConfigError: ``given`` is not a wheel of this version, or none can be made here.
        NMoEError: A file cannot be written.
    """
    name, data = _read(given) if given is not None else _own_wheel()
    write_bytes(folder / name, data)
    write_text(folder / CHECKSUMS, f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    write_text(folder / CONSTRAINTS, _constraints())
    return folder / name


def wheel_name(folder: Path) -> str:
    """The wheel of a party's folder.

    Raises:
        ConfigError: There is not exactly one.
    """
    found = [path.name for path in (folder / WHEEL).glob("*.whl")]
    if len(found) != 1:
        raise ConfigError(f"{folder / WHEEL} holds {len(found)} wheels; allowed: 1")
    return found[0]


def wheel_problem(folder: Path) -> str:
    """What is wrong with the wheel of a party's folder; empty: nothing."""
    try:
        name = wheel_name(folder)
        wanted = (folder / WHEEL / CHECKSUMS).read_text(encoding="utf-8").split()
        found = hashlib.sha256((folder / WHEEL / name).read_bytes()).hexdigest()
    except ConfigError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"{folder / WHEEL}: {error}"
    if wanted != [found, name]:
        return (
            f"{folder / WHEEL / name} is not the file that {CHECKSUMS} names: copy the folder again"
        )
    return ""


def _own_wheel() -> tuple[str, bytes]:
    """Name and content of the wheel that this process runs from."""
    root = checkout()
    if root is not None:
        return _built(root)
    source = installed_from()
    if source is not None and source.suffix == ".whl":
        return _read(source)
    return _repacked()


def _read(path: Path) -> tuple[str, bytes]:
    try:
        name, version, *_ = parse_wheel_filename(path.name)
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            packed = {one.split("/")[0] for one in archive.namelist()}
    except (InvalidWheelFilename, InvalidSdistFilename):
        raise ConfigError(f"{path} is not the name of a wheel") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise ConfigError(f"{path} is not a wheel: it is no zip archive") from None
    if name != NAME or str(version) != __version__ or NAME.replace("-", "_") not in packed:
        raise ConfigError(
            f"{path} holds {name} {version}; allowed: a wheel of {NAME} {__version__}, which runs "
            "here"
        )
    return path.name, data


@lru_cache(maxsize=1)
def _built(root: Path) -> tuple[str, bytes]:
    """Built from a checkout, by hatchling if it is here, else by pip, which fetches it."""
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("hatchling") is not None:
            command = ["-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        else:
            command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, "."]
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=root,
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS,
                check=False,
            )
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        except (OSError, subprocess.TimeoutExpired) as error:
            said = [str(error)]
        found = list(Path(folder).glob("*.whl"))
        if len(found) != 1:
            raise ConfigError(
                f"no wheel could be built from {root}: {' '.join(said) or 'nothing was said'}; "
                "pip install hatchling, or give one with --wheel FILE"
            )
        return _read(found[0])


def _repacked() -> tuple[str, bytes]:
    """The installed files in a wheel again, by the list that the installer left."""
    missing = ConfigError(
        f"{NAME} runs here neither from a checkout nor from an installed wheel: give the wheel "
        "with --wheel FILE"
    )
    try:
        own = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:
        raise missing from None
    info = f"{NAME.replace('-', '_')}-{own.version}.dist-info"
    tops = (NAME.replace("-", "_"), info)
    left_out = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    files = sorted(
        (path.as_posix(), Path(str(path.locate())))
        for path in own.files or ()
        if path.parts[0] in tops
        and "__pycache__" not in path.parts
        and not (path.parts[0] == info and path.name in left_out)
    )
    if not files or not any(name.startswith(f"{tops[0]}/") for name, _ in files):
        raise missing
    packed, record = io.BytesIO(), io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files:
            data = path.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            rows.writerow([name, f"sha256={digest}", len(data)])
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        rows.writerow([f"{info}/RECORD", "", ""])
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _EPOCH), record.getvalue())
    tag = re.search(r"^Tag: (\S+)", own.read_text("WHEEL") or "", re.MULTILINE)
    ending = tag[1] if tag else "py3-none-any"
    return f"{NAME.replace('-', '_')}-{own.version}-{ending}.whl", packed.getvalue()


def _constraints() -> str:
    """``name==version`` of every package that is installed here for a device's sake."""
    waiting = deque(_required(NAME, set(_EXTRAS)))
    done: dict[str, set[str]] = {}
    while waiting:
        wanted = waiting.popleft()
        name: str = canonicalize_name(wanted.name)
        new = {"", *wanted.extras} - done.setdefault(name, set())
        if name != NAME and new:
            done[name] |= new
            waiting += _required(name, new)
    lines = []
    for package in sorted(done):
        if package.startswith(_OF_TORCH):
            continue
        try:
            lines.append(f"{package}=={metadata.version(package).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
    return "\n".join(["# As installed where this folder was written.", *lines, ""])


def _required(name: str, extras: set[str]) -> list[Requirement]:
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            wanted = Requirement(text)
            if any(
                wanted.marker is None or wanted.marker.evaluate({"extra": extra})
                for extra in {"", *extras}
            ):
                found.append(wanted)
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue
    return found


def copy_wheel(source: Path, folder: Path) -> None:
    """Give a party the wheel of another folder; on one disk, both names are one file."""
    shutil.copytree(source / WHEEL, folder / WHEEL, copy_function=_link)


def _link(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:
        shutil.copy2(source, copy)
