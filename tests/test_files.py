import errno
import json
import os
import stat
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower import files
from nmoe_flower.errors import CertificateError, CheckpointError, NMoEError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "one")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), full)
    with pytest.raises(NMoEError, match=r"cannot write .*a\.json: No space left"):
        files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("cut", [False, True])
def test_a_key_is_never_readable_by_others(tmp_path, monkeypatch, cut):
    """Neither under its name nor under the one it is written to, whatever was left there."""
    path, modes = tmp_path / "a.key", []
    path.write_bytes(b"old")
    path.chmod(0o644)
    sync = os.fsync

    def look(handle):
        modes.extend(stat.S_IMODE(one.stat().st_mode) for one in tmp_path.glob(".a.key*"))
        if cut:
            raise OSError(errno.EIO, "Input/output error")
        sync(handle)

    left = tmp_path / f".a.key.{os.getpid()}-{threading.get_ident()}.tmp"
    left.write_bytes(b"of a process that was killed")
    left.chmod(0o666)
    monkeypatch.setattr(os, "fsync", look)
    if cut:
        with pytest.raises(CertificateError, match=r"cannot write .*a\.key: Input/output error"):
            files.write_bytes(path, b"new", mode=0o600, raises=CertificateError)
        assert path.read_bytes() == b"old"
    else:
        files.write_bytes(path, b"new", mode=0o600)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    assert modes[0] == 0o600
    assert names(tmp_path) == ["a.key"]


def test_without_a_mode_the_umask_decides(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_device_is_written_to_and_stays_what_it_is():
    assert Path("/dev/null").is_char_device()
    files.write_text(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


def test_a_pipe_gets_all_of_it_and_a_full_device_is_named(tmp_path):
    reading, writing = os.pipe()
    files.write_text(Path(f"/dev/fd/{writing}"), "through")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"through"
    (tmp_path / "link").symlink_to("/dev/full")  # a link, so that nothing could harm the device
    with pytest.raises(NMoEError, match=r"cannot write .*link: No space left"):
        files.write_text(tmp_path / "link", "much")
    assert (tmp_path / "link").is_symlink()


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NMoEError, match=r"file/below\.txt"):
        files.write_text(tmp_path / "file" / "below.txt", "")
    with pytest.raises(NMoEError, match=r"cannot append to .*file"):
        files.append_line(tmp_path / "file" / "below.txt", "")


def test_a_full_disk_is_reported(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(NMoEError, match="cannot append to /dev/full"):
        files.append_line(full, "text")


def test_json_takes_numpy_values_and_paths_and_has_no_nan(tmp_path):
    value = {
        "matrix": np.eye(2),
        "count": np.int64(3),
        "infinite": [np.float32("inf"), float("nan")],
        "path": Path("a") / "b",
        "flag": np.bool_(True),
        3: ("tuple", None),
    }
    files.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "matrix": [[1.0, 0.0], [0.0, 1.0]],
        "count": 3,
        "infinite": [None, None],
        "path": str(Path("a") / "b"),
        "flag": True,
        "3": ["tuple", None],
    }


def test_append_begins_a_new_line_after_a_cut_one(tmp_path):
    path = tmp_path / "log"
    files.append_line(path, "one")
    files.append_line(path, "two")
    with path.open("a") as file:
        file.write("cut")
    files.append_line(path, "three")
    assert path.read_text() == "one\ntwo\ncut\nthree\n"


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 3), max_size=5))
def test_arrays_of_any_name_come_back(tmp_path_factory, ranks):
    ranks.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    arrays = {name: np.arange(2**rank).reshape((2,) * rank) for name, rank in ranks.items()}
    files.save_arrays(path, arrays)
    loaded = files.load_arrays(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(10)[::3],
        np.zeros((0, 4), np.float16),
        np.array([True, False]),
        np.arange(4, dtype=">i4"),
        np.array([np.nan, -0.0, np.inf]),
    ],
    ids=["fortran", "strided", "empty", "bool", "big-endian", "not finite"],
)
def test_layouts_and_types_come_back(tmp_path, array):
    files.save_arrays(tmp_path / "a", {"x": array}, metadata={"k": "v"})
    arrays, metadata = files.read_arrays(tmp_path / "a")
    np.testing.assert_array_equal(arrays["x"], array)
    assert arrays["x"].dtype == array.dtype.newbyteorder("=")
    assert metadata == {"k": "v"}


@pytest.mark.parametrize(
    ("name", "array"),
    [("x", np.array([object()])), ("x", np.array(["text"])), ("__metadata__", np.zeros(1))],
)
def test_arrays_that_cannot_be_stored_are_named(tmp_path, name, array):
    with pytest.raises(NMoEError, match=f"cannot store the array '{name}'"):
        files.save_arrays(tmp_path / "a", {name: array})
    assert names(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 7, 40, -1], ids=["empty", "header", "half", "one byte less"])
def test_a_cut_file_is_refused_by_name(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    files.save_arrays(path, {"x": np.arange(100.0)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a readable"):
        files.load_arrays(path)


@pytest.mark.parametrize(("kind", "size"), [("BF16", 2), ("F8_E4M3", 1)])
def test_types_numpy_lacks_are_refused_by_name(tmp_path, kind, size):
    path = tmp_path / "foreign.safetensors"
    header = json.dumps({"x": {"dtype": kind, "shape": [1], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors holds a type"):
        files.load_arrays(path)


def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        files.load_arrays(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=tmp_path.name):
        files.load_arrays(tmp_path)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a\0b", "..\\x", "link/x"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(NMoEError, match="leads out of the folder"):
        files.safe_child(folder, name)


@pytest.mark.parametrize("name", ["a", "a/b.c", "gate-federated+prior", "a/../b", "..a"])
def test_names_inside_the_folder_are_kept(tmp_path, name):
    assert files.safe_child(tmp_path, name) == tmp_path / name


def refusal(read, path, **options):
    with pytest.raises(NMoEError) as caught:
        read(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


READERS = [files.read_text, files.read_json, files.read_toml]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{}".encode("utf-16"), "UTF-16 text; allowed: UTF-8"),
        ("{}".encode("utf-32"), "UTF-32 text; allowed: UTF-8"),
        ("{}".encode("utf-16-le"), "byte 0x00 in line 1"),
        (b'a = 1\n\xff = "x"', "byte 0xff in line 2"),
        (b"\xef\xbb\xbf\xef\xbb", "byte 0xef in line 1"),
    ],
    ids=["utf-16", "utf-32", "utf-16 without a mark", "latin", "cut"],
)
def test_another_encoding_is_one_error_with_the_name_of_the_file(tmp_path, read, data, said):
    path = tmp_path / "odd.txt"
    path.write_bytes(data)
    assert said in refusal(read, path)


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, read):
    assert "cannot read the recipe" in refusal(read, tmp_path / "missing", what="the recipe")
    assert "No such file" in refusal(read, tmp_path / "missing")
    assert "directory" in refusal(read, tmp_path)
    assert "null byte" in refusal(read, Path("a\0b"))
    with pytest.raises(CheckpointError):
        read(tmp_path / "missing", raises=CheckpointError)


def test_no_more_than_asked_for_is_read(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("12345")
    assert files.read_text(path, most=5) == "12345"
    assert "more than 4 bytes" in refusal(files.read_text, path, most=4)
    endless = Path("/dev/zero")
    if endless.exists():
        assert "more than 1,000 bytes" in refusal(files.read_text, endless, most=1000)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "marked"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert files.read_text(path) == "[1]"
    assert files.read_json(path) == [1]
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert files.read_toml(path) == {"a": 1}


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [65, 900, 100_000])
def test_what_is_nested_too_deep_is_refused(tmp_path, levels):
    path = tmp_path / "deep"
    for text in (nested(levels), "[" * levels, '{"a": ' * levels + "1" + "}" * levels):
        path.write_text(text)
        said = refusal(files.read_json, path)
        assert "nested too deep; allowed: 64 levels" in said or "not valid JSON" in said
    path.write_text(f"a = {nested(levels)}")
    assert "nested too deep" in refusal(files.read_toml, path)


def test_what_is_nested_within_the_limit_is_read(tmp_path):
    path = tmp_path / "deep"
    path.write_text(nested(64))
    value = files.read_json(path)
    for _ in range(63):
        (value,) = value
    assert value == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("NaN", "NaN is no number"),
        ("[1, -Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is too large"),
        ("9" * 5000, "not valid JSON"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' stands there twice"),
    ],
)
def test_json_of_others_is_strict(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert said in refusal(files.read_json, path)


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "a = " + "9" * 5000, "\ta\x07 = 1"])
def test_malformed_toml_is_refused(tmp_path, text):
    path = tmp_path / "a.toml"
    path.write_text(text)
    assert "not valid TOML" in refusal(files.read_toml, path)


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=["Cs"]))))
def test_toml_reads_back_as_it_was_written(tables):
    tables = {key.encode(errors="replace").decode(): value for key, value in tables.items()}
    assert tomllib.loads(files.to_toml({"a table": tables})) == {"a table": tables}
