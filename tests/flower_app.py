"""This project's Flower app as somebody else gets it: a clean copy, and the bundle made of it."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def clean_copy(folder: Path) -> Path:
    """Copy what a clone of this tree would hold: every file git knows or would take, as it is now.

    Without git (an unpacked archive) everything but hidden folders is taken.
    """
    for name in _tracked():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def _tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        return [str(path) for path in paths if not path.parts[0].startswith(".")]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return list(filter(None, done.stdout.split("\0")))
