"""Commands that write several files write all of them, or leave everything as it was."""

from pathlib import Path

import pytest

from nmoe_flower.errors import NMoEError
from nmoe_flower.files import all_or_none, write_text


class StopError(Exception):
    pass


def tree(folder: Path) -> dict[str, str]:
    """Every file below, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_a_new_folder_appears_when_all_is_there(tmp_path: Path) -> None:
    lab = tmp_path / "far" / "away" / "lab"
    with all_or_none(lab) as new:
        write_text(new / "a" / "one", "1")
        write_text(new / "two", "2")
        assert not lab.exists()
    assert tree(tmp_path) == {"far/away/lab/a/one": "1", "far/away/lab/two": "2"}


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_what_failed(tmp_path: Path, there: bool) -> None:
    lab = tmp_path / "far" / "lab"
    if there:
        write_text(lab / "two", "old")
    before = tree(tmp_path)

    def write() -> None:
        with all_or_none(lab) as new:
            write_text(new / "two", "new")
            raise StopError

    with pytest.raises(StopError):
        write()
    assert tree(tmp_path) == before
    assert (tmp_path / "far").exists() is there  # nor an empty folder on the way


def test_files_of_a_folder_are_replaced_and_the_others_stay(tmp_path: Path) -> None:
    write_text(tmp_path / "lab" / "kept", "old")
    write_text(tmp_path / "lab" / "a" / "one", "old")
    (tmp_path / "lab" / "a" / "one").chmod(0o644)
    with all_or_none(tmp_path / "lab") as new:
        write_text(new / "a" / "one", "new")
        (new / "a" / "one").chmod(0o600)
        write_text(new / "b" / "c" / "two", "new")
    assert tree(tmp_path / "lab") == {"kept": "old", "a/one": "new", "b/c/two": "new"}
    assert (tmp_path / "lab" / "a" / "one").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (tmp_path / "lab").iterdir()) == ["a", "b", "kept"]


def test_what_was_moved_is_put_back_if_a_later_file_cannot_be(tmp_path: Path) -> None:
    """The third file has a folder in its place: the two before it must not stay behind."""
    lab = tmp_path / "lab"
    write_text(lab / "a", "old")
    (lab / "z").mkdir()
    write_text(lab / "z" / "inside", "old")
    before = tree(tmp_path)

    def write() -> None:
        with all_or_none(lab) as new:
            for name in ("a", "new/b", "z"):
                write_text(new / name, "new")

    with pytest.raises(NMoEError, match=r"cannot write .*lab: Is a directory"):
        write()
    assert tree(tmp_path) == before
    assert not (lab / "new").exists()


def test_the_file_that_is_watched_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab").mkdir()
    moved, replace = [], Path.replace

    def noted(path: Path, target: Path) -> Path:
        moved.append(Path(target).name)
        return replace(path, target)

    with all_or_none(tmp_path / "lab", last="bundle.json") as new:
        for name in ("bundle.json", "expert", "gate"):
            write_text(new / name, "new")
        monkeypatch.setattr(Path, "replace", noted)
    assert moved == ["expert", "gate", "bundle.json"]


def test_a_folder_behind_a_link_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "lab").symlink_to("real")
    with all_or_none(tmp_path / "lab") as new:
        write_text(new / "one", "1")
    assert (tmp_path / "lab").is_symlink()
    assert tree(tmp_path / "real") == {"one": "1"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NMoEError, match=r"cannot write .*file/lab: Not a directory"):
        all_or_none(tmp_path / "file" / "lab").__enter__()
