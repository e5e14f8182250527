"""Where this package runs from, and how the packages it lacks are installed there.

The package is on no index: whoever takes its name there could send code to every device. So no
text of ours says ``pip install`` with the bare name; `install_hint` says what works here.
"""

import json
import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["NAME", "checkout", "extra_requirements", "install_hint", "installed_from"]

NAME = "nmoe-flower"

_PACKAGE = Path(__file__).resolve().parent
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def checkout() -> Path | None:
    """The folder with ``pyproject.toml`` beside the package; None if it was installed."""
    root = _PACKAGE.parent
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        return root if project["project"]["name"] == NAME else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def installed_from() -> Path | None:
    """The wheel or folder that ``pip`` installed this package from, if it is still there."""
    try:
        url = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")["url"]
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    parts = urlsplit(str(url))
    path = Path(unquote(parts.path))
    return path if parts.scheme == "file" and path.exists() else None


def extra_requirements(extra: str) -> list[str]:
    """What an extra of this package asks for, without this package itself.

    Args:
        extra: Such as ``report``; ``simulation`` includes what it takes from ``data``.
    """
    try:
        wanted = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    found: list[str] = []
    for text in wanted:
        requirement, _, marker = text.partition(";")
        match = _EXTRA.search(marker)
        if match is None or match[1] != extra:
            continue
        bare = requirement.strip()
        if bare.partition("[")[0] == NAME:
            for inner in bare.partition("[")[2].partition("]")[0].split(","):
                found += extra_requirements(inner.strip())
        else:
            found.append(bare)
    return list(dict.fromkeys(found))


def install_hint(*extras: str) -> str:
    """The command that installs extras of this package where it runs now.

    Args:
        extras: Names of extras: ``report``, ``serve``, ...
    """
    names = ",".join(extras)
    root, source = checkout(), installed_from()
    if root is not None:
        here = "." if root == Path.cwd() else str(root)
        return f"pip install -e {shlex.quote(f'{here}[{names}]')}"
    if source is not None:
        return f"pip install {shlex.quote(f'{NAME}[{names}] @ {source.as_uri()}')}"
    wanted = [text for extra in extras for text in extra_requirements(extra)]
    if not wanted:
        return f"install {NAME} with the extra {names}"
    return f"pip install {' '.join(map(shlex.quote, wanted))}"
