"""``nmoe infer`` and ``nmoe peers``, from options to lines."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from nmoe_flower.certificates import Authority, create_authority
from nmoe_flower.cli import main
from nmoe_flower.cli.images import read_images
from nmoe_flower.cli.peers import _table
from nmoe_flower.data import normalise
from nmoe_flower.inference.ask.client import Client
from nmoe_flower.inference.ask.survey import PeerStatus
from nmoe_flower.inference.protocol.peers import PeerList
from nmoe_flower.inference.protocol.signing import DIRECTORY, verify_list
from nmoe_flower.installation import install_hint
from nmoe_flower.report import read_traffic

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 2, 2), np.uint8)
SHAPE = (1, 2, 2)

Make = Callable[..., Any]


# --- images ---


def read(*sources: Path | str, shape: tuple[int, int, int] = SHAPE, **options: Any) -> list[Any]:
    stdin = options.pop("stdin", io.BytesIO())
    return list(read_images([str(one) for one in sources], shape, stdin=stdin, **options))


def png(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_files_folders_and_arrays_give_the_same_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for place, pixels in enumerate(IMAGES):
        png(folder / f"{place}.png", pixels)
    (folder / "notes.txt").write_text("not an image")
    np.save(tmp_path / "many.npy", IMAGES)
    np.save(tmp_path / "deep.npy", IMAGES[..., None])
    np.save(tmp_path / "one.npy", IMAGES[0])
    for source in (folder, tmp_path / "many.npy", tmp_path / "deep.npy"):
        found = read(source)
        assert np.array_equal([one.pixels for one in found], IMAGES[..., None])
    assert np.array_equal(read(tmp_path / "one.npy")[0].pixels, IMAGES[0][..., None])
    assert [one.name for one in read(folder)] == [str(folder / f"{i}.png") for i in range(5)]
    assert read(tmp_path / "many.npy")[3].name == f"{tmp_path / 'many.npy'}[3]"


def test_standard_input_may_be_an_image_or_an_array(tmp_path: Path) -> None:
    for source in (png(tmp_path / "a.png", IMAGES[0]), tmp_path / "b.npy"):
        np.save(tmp_path / "b.npy", IMAGES[0])
        with source.open("rb") as stream:
            (one,) = read("-", stdin=stream)
        assert one.name == "-"
        assert np.array_equal(one.pixels, IMAGES[0][..., None])


def test_colour_is_converted(tmp_path: Path) -> None:
    grey = png(tmp_path / "grey.png", IMAGES[0])
    (found,) = read(grey, shape=(3, 2, 2))
    assert np.array_equal(found.pixels, np.repeat(IMAGES[0][..., None], 3, axis=2))
    colour = png(tmp_path / "colour.png", np.full((2, 2, 3), 100, np.uint8))
    assert (read(colour)[0].pixels == 100).all()


def test_another_size_is_changed_only_if_asked(tmp_path: Path) -> None:
    path = png(tmp_path / "large.png", np.full((4, 6), 7, np.uint8))
    (one,) = read(path)
    assert one.pixels is None
    assert "6x4 pixels, the extractor needs 2x2: --resize" in one.error
    assert (read(path, resize=True)[0].pixels == 7).all()


def test_what_is_no_image_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = png(tmp_path / "good.png", IMAGES[0])
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:40])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "floats.npy", IMAGES.astype(np.float32))
    np.save(tmp_path / "size.npy", IMAGES[:, :1])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "nothing").mkdir()
    bad = {
        "cut.png": "", "text.png": "not a readable image", "empty.png": "not a readable",
        "gone.png": "No such file", "text.npy": "not a .npy array", "floats.npy": "is float32",
        "size.npy": r"allowed: uint8", "objects.npy": "not a .npy array", "nothing": "has no file",
    }  # fmt: skip
    found = read(*(tmp_path / name for name in bad), good)
    for (name, text), one in zip(bad.items(), found, strict=False):
        assert one.pixels is None, name
        assert one.error
        assert text in one.error
    assert np.array_equal(found[-1].pixels, IMAGES[0][..., None])


def test_a_picture_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for size in (4, 40):  # a warning of Pillow's, and an error of Pillow's
        path = png(tmp_path / f"{size}.png", np.zeros((size, size), np.uint8))
        assert read(path, resize=True)[0].error == "it has far too many pixels"


# --- nmoe infer ---


@pytest.fixture
def around(neighbourhood: Make) -> Any:
    return neighbourhood(3)


@pytest.fixture
def infer(
    around: Any, bundle_of: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    """Runs the command: the exit code and the lines."""
    folder = bundle_of(around).folder
    around.list.write(tmp_path / "peers.json")

    def run(*arguments: Path | str) -> tuple[int, list[dict[str, Any]]]:
        words = ["infer", folder, *arguments, "--peers", tmp_path / "peers.json", "--insecure"]
        code = main([str(word) for word in words])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_one_line_per_image(infer: Make, around: Any, bundle_of: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    code, lines = infer(tmp_path / "images.npy", "--deadline", "20")
    with Client(bundle_of(around), around.list, deadline=20.0) as client:
        answer = client.predict(IMAGES)
    assert code == 0
    for place, line in enumerate(lines):
        assert line["image"] == f"{tmp_path / 'images.npy'}[{place}]"
        assert line["class"] == answer.classes[place]
        assert line["probability"] == pytest.approx(answer.probabilities[place].max(), abs=1e-5)
        assert line["experts"] == line["answered_by"] == answer.record.expert_ids[place].tolist()
        (expert,) = line["answered_by"]
        assert line["peers"] == ["self" if expert == 0 else f"peer-{expert}"]
        assert line["fallback"] is None
        assert line["ms"] > 0
    assert len(lines) == 5


def test_fallbacks_are_told(infer: Make, around: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    for partition in around.peers:
        around[partition].mood = "garbage"
    code, lines = infer(tmp_path / "images.npy", "--deadline", "20")
    assert code == 0
    assert {line["fallback"] for line in lines if line["experts"] != [0]} == {"local"}
    assert all(line["answered_by"] == [0] for line in lines)


def test_unreadable_images_fail_the_command_at_its_end(infer: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("not an image")
    good = png(tmp_path / "good.png", IMAGES[0])
    code, lines = infer(tmp_path / "bad.png", good, "--batch-size", "1")
    assert code == 1
    assert lines[0] == {
        "image": str(tmp_path / "bad.png"),
        "error": "it is not a readable image: its format is not known",
    }
    assert lines[1]["class"] in ("ant", "bee", "cow")


def test_standard_input(infer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(tmp_path / "a.png", IMAGES[0]).read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    code, (line,) = infer("-")
    assert (code, line["image"]) == (0, "-")


def test_records_are_kept_and_drawn(
    infer: Make, around: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    records, picture = tmp_path / "traffic.jsonl", tmp_path / "traffic.png"
    options = ("--records", records, "--batch-size", "2", "--deadline", "20")
    _, lines = infer(tmp_path / "images.npy", *options)
    assert [json.loads(line)["rows"] for line in records.read_text().splitlines()] == [2, 2, 1]
    traffic = read_traffic([records])
    assert traffic.devices == [0]
    experts = [line["experts"][0] for line in lines]
    assert traffic.chosen[0].tolist() == np.bincount(experts).tolist()
    assert main(["peers", "--heat-map", str(picture), str(records)]) == 0
    with Image.open(picture) as image:
        assert image.width > 500


def test_a_device_alone_asks_its_own_expert(
    around: Any, bundle_of: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No peers, no certificate: whoever the gate wants, the own expert answers."""
    np.save(tmp_path / "images.npy", IMAGES)
    bundle = bundle_of(around)
    assert main(["infer", str(bundle.folder), str(tmp_path / "images.npy")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with torch.inference_mode():
        logits = bundle.expert()(bundle.extractor()(normalise(IMAGES[..., None])))
    names = [bundle.classes[number] for number in logits.argmax(dim=1).tolist()]
    assert [line["class"] for line in lines] == names
    for line in lines:
        assert (line["answered_by"], line["peers"]) == ([0], ["self"])
        assert line["fallback"] == (None if line["experts"] == [0] else "local")
    assert {line["fallback"] for line in lines} == {None, "local"}


def test_a_nodes_folder_holds_all_that_asking_needs(
    tmp_path: Path, bundle_of: Make, around: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lab, images = tmp_path / "lab", tmp_path / "images.npy"
    np.save(images, IMAGES)
    assert main(["deploy", str(lab), "--nodes", "4"]) == 0
    node = lab / "nodes" / "node-0"
    words = ["infer", str(images), "--node", str(node), "--deadline", "0.2"]
    assert main(words) == 1
    assert f"{node} has no bundle yet: after the training, sh serve.sh" in capsys.readouterr().err
    shutil.copytree(bundle_of(around).folder, node / "bundle")
    assert main(words) == 0  # nobody else serves: all is answered here
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["answered_by"] for line in lines] == [[0]] * len(IMAGES)
    assert main(["peers", "--node", str(node), "--once", "--timeout", "0.2"]) == 1
    assert capsys.readouterr().out.count("unavailable") == 4
    (node / "ca.pem").unlink()
    assert main(words) == 1
    assert "ca.pem" in capsys.readouterr().err
    assert main([*words[:3], str(lab / "server")]) == 1
    assert "is the folder of the server; allowed: that of a node" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "b", "i", "--peers", "p"],
        ["infer", "b", "i", "--peers", "p", "--insecure", "--key", "k"],
        ["infer", "b", "i", "--insecure"],
        ["infer", "b", "i", "--key", "k"],
        ["infer", "b"],
        ["infer", "i", "--node", "n", "--insecure"],
        ["infer", "i", "--node", "n", "--peers", "p"],
        ["infer", "b", "i", "--peers", "p", "--insecure", "--batch-size", "0"],
        ["peers"],
        ["peers", "--peers", "p"],
        ["peers", "--heat-map", "a.png"],
        ["peers", "--peers", "p", "--insecure", "records.jsonl"],
    ],
)
def test_wrong_usage_leaves_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


@pytest.mark.parametrize("words", [["infer", "b", "i"], ["peers"]])
def test_a_missing_package_is_named(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a device that has installed nmoe-flower without the extra."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bundle.json").write_text("{}")
    peer = {"name": "fox", "partition": 0, "address": "h:1"}
    (tmp_path / "p").write_text(json.dumps({"peers": [peer]}))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("nmoe_flower.inference")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc.aio", None)
    assert main([*words, "--peers", "p", "--insecure"]) == 1
    told = capsys.readouterr().err
    assert f"nmoe {words[0]} needs grpc.aio: {install_hint('serve')}" in told


def test_a_missing_bundle_or_list_is_an_error_in_words(
    tmp_path: Path, infer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peers.json").write_text("{}")
    code, lines = infer("-")
    assert (code, lines) == (1, [])
    words = ["infer", str(tmp_path / "gone"), "-", "--peers", "p", "--insecure"]
    assert main(words) == 1
    assert "nmoe: error: cannot read" in capsys.readouterr().err


# --- nmoe peers ---


def test_the_table_says_who_serves(
    around: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "peers.json"
    around.list.write(path)
    words = ["peers", "--peers", str(path), "--insecure", "--once"]
    assert main(words) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    told = "peer expert address health version extractor waiting served share ms"
    assert header.split() == told.split()
    assert [row.split()[:4] for row in rows] == [
        [f"peer-{i}", str(i), around[i].entry.address, "serving"] for i in (1, 2, 3)
    ]
    around.stop(2)
    around[1].asked, around[3].asked, around[3].mood = 1, 3, "draining"
    assert main([*words, "--format", "json"]) == 1
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    health = [one["health"] for one in (first, second, third)]
    assert health == ["serving", "unavailable", "not serving"]
    assert (second["ms"], second["share"]) == (None, None)
    assert [one["share"] for one in (first, third)] == [0.25, 0.75]  # 1 and 3 answers


def test_what_a_peer_says_of_itself_begins_no_line_and_paints_nothing(
    around: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around.list.write(tmp_path / "peers.json")
    words = ["peers", "--peers", str(tmp_path / "peers.json"), "--insecure", "--once"]
    around[2].version = "x\npeer-9  9  10.0.0.9:1  serving  \x1b[31m0"
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["peer-1", "peer-2", "peer-3"]
    assert "\x1b" not in shown
    assert main([*words, "--format", "json"]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[1])
    assert (told["health"], told["expert_version"]) == ("garbage", "")
    assert repr(around[2].version) in told["detail"]


def test_the_live_table_shows_any_text_as_it_is() -> None:
    shown = io.StringIO()
    status = PeerStatus("fox", 1, "h:1", "serving", expert_version="[/x]")
    Console(file=shown, width=200).print(_table([status]))
    assert "[/x]" in shown.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_table_is_renewed_until_ctrl_c(
    around: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    around.list.write(tmp_path / "peers.json")
    shown, looks = io.StringIO(), []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        around.stop(2)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("nmoe_flower.cli.peers.time.sleep", wait)
    monkeypatch.setattr(shown, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "200")
    words = ["peers", "--peers", str(tmp_path / "peers.json"), "--insecure", "--interval", "7"]
    assert main(words) == 0
    assert looks == [7.0, 7.0]
    first, second = shown.getvalue().split("health", 2)[1:]
    assert "unavailable" not in first
    assert "unavailable" in second


def test_a_peer_with_another_expert_than_listed_is_found(
    around: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around[2].partition = 7
    entries = PeerList(tuple(around[i].entry for i in (1, 2, 3)))
    around[2].partition = 2
    entries.write(tmp_path / "peers.json")
    words = ["peers", "--peers", str(tmp_path / "peers.json"), "--insecure", "--once"]
    assert main([*words, "--format", "json"]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["health"] == "partition"
    assert last["detail"] == "peer-7 serves partition 2, the list says 7"


@pytest.mark.parametrize("signer", ["authority", DIRECTORY])
def test_a_list_is_signed_and_its_serial_grows(
    around: Any, forest: Authority, tmp_path: Path, signer: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    draft, keys, out = tmp_path / "draft.json", tmp_path / "keys", tmp_path / "peers.json"
    around.list.write(draft)
    if signer == DIRECTORY:
        forest.issue(keys, DIRECTORY)
        (keys / "ca.pem").write_bytes(forest.certificate_pem)
        authority_pem = forest.certificate_pem
    else:
        authority_pem = create_authority(keys, name="wood").certificate_pem
    words = ["peers", "--peers", str(draft), "--sign", str(keys), "--out", str(out), "--days", "2"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out}: 3 peers, serial 1, for 2 days\n"
    signed = PeerList.load(out)
    assert signed.expires_unix - signed.issued_unix == 2 * 86_400
    assert verify_list(signed, authority_pem, now=signed.issued_unix).peers == around.list.peers
    assert main(["peers", "--peers", str(out), "--sign", str(keys)]) == 0
    assert PeerList.load(out).serial == 2


def test_a_folder_without_a_key_that_signs_is_named(
    around: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft, node = tmp_path / "draft.json", tmp_path / "node-0"
    around.list.write(draft)
    assert main(["peers", "--peers", str(draft), "--sign", str(node)]) == 1
    assert f"--sign {node} holds neither ca.key nor directory.key" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["0", "-1", "nan", "1e9"])
def test_a_list_is_signed_for_some_days(
    tmp_path: Path, days: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["peers", "--peers", "p", "--sign", str(tmp_path), "--days", days]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert f"argument --days: '{days}'; allowed: a number above 0" in capsys.readouterr().err
