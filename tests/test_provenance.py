"""Which source a result comes from: the revision, and whether the code was changed."""

import subprocess
from pathlib import Path

import pytest

from nmoe_flower import provenance
from nmoe_flower.provenance import provenance as found

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository that holds the package's folder, one page and our .gitignore."""
    (tmp_path / "nmoe_flower").mkdir()
    (tmp_path / "nmoe_flower" / "code.py").write_text("one = 1\n")
    (tmp_path / "README.md").write_text("A page.\n")
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*name, "commit", "-q", "-m", "First"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "nmoe_flower" / "provenance.py"), raising=True
    )
    return tmp_path


def dirty() -> bool:
    return bool(found(seed=0)["git"]["dirty"])


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("new\n")


def test_a_fresh_checkout_is_clean_and_named(checkout: Path) -> None:
    told = found(seed=0)["git"]
    assert told["dirty"] is False
    assert len(told["revision"]) == 40


@pytest.mark.parametrize(
    "name",
    ["partition.png", "report/report.md", "experiments/partition.png", "runs/nmoe/results.json",
     "report-of-mine/report.md", "notes.txt", "data/train/cat/1.png"],
)  # fmt: skip
def test_what_is_written_beside_the_package_leaves_it_clean(checkout: Path, name: str) -> None:
    write(checkout / name)
    assert dirty() is False


@pytest.mark.parametrize("name", ["partition.png", "report/report.md", "runs/nmoe/results.json"])
def test_git_does_not_offer_what_the_commands_write(checkout: Path, name: str) -> None:
    write(checkout / name)
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    assert subprocess.run(status, cwd=checkout, capture_output=True, check=True).stdout == b""


def test_a_published_figure_and_the_packages_own_report_are_offered(checkout: Path) -> None:
    for name in ("results/digits/figures/partition.png", "nmoe_flower/report/tables.py"):
        write(checkout / name)
        ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=checkout, check=False)
        assert ignored.returncode == 1


@pytest.mark.parametrize("name", ["nmoe_flower/code.py", "nmoe_flower/new.py", "README.md"])
def test_changed_files_and_new_code_are_told(checkout: Path, name: str) -> None:
    write(checkout / name)
    assert dirty() is True


def test_without_a_repository_there_is_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "nmoe_flower" / "provenance.py"))
    assert found(seed=0)["git"] is None
