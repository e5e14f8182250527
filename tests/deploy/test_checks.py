"""The check before the start: every planted fault is found, named, and nothing else."""

import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from PIL import Image

from nmoe_flower.certificates import Authority, Identity, create_authority
from nmoe_flower.cli import main
from nmoe_flower.config import Config
from nmoe_flower.deploy import (
    FederationPlan,
    Finding,
    Party,
    add_nodes,
    check_folder,
    node_files,
    write_federation,
)
from nmoe_flower.errors import ConfigError

NODE = Path("nodes", "node-1")


def problems(folder: Path, *, now: Callable[[], float] = time.time) -> dict[str, str]:
    """``party what`` -> what is wrong."""
    return {f"{f.party} {f.what}": f.problem for f in check_folder(folder, now=now) if f.problem}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def reissue(folder: Path, name: str, **options: object) -> None:
    authority = Authority.load(folder / "authority")
    own = folder / ("server" if name == "superlink" else f"nodes/{name}")
    authority.issue(own, name, **options)  # type: ignore[arg-type]


def expired(folder: Path) -> None:
    reissue(folder, "node-1", days=1, start=datetime.now(UTC) - timedelta(days=3))


def not_yet_valid(folder: Path) -> None:
    reissue(folder, "node-1", start=datetime.now(UTC) + timedelta(days=3))


def expires_soon(folder: Path) -> None:
    reissue(folder, "node-1", days=3)


def other_host(folder: Path) -> None:
    reissue(folder, "superlink", hosts=["10.9.8.7"])


def other_authority(folder: Path) -> None:
    create_authority(folder / "other", name="other").issue(folder / NODE, "node-1")


def other_key(folder: Path) -> None:
    shutil.copy(folder / "nodes/node-0/node-0.key", folder / NODE / "node-1.key")


def open_key(folder: Path) -> None:
    (folder / NODE / "supernode.key").chmod(0o644)


def other_version(folder: Path) -> None:
    edit(folder / NODE / "settings.toml", 'flwr = "', 'flwr = "9.')


def no_settings(folder: Path) -> None:
    (folder / NODE / "settings.toml").write_text("kind = ")


def same_partition(folder: Path) -> None:
    edit(folder / NODE / "node.toml", "partition-id = 1", "partition-id = 0")


def partition_too_high(folder: Path) -> None:
    edit(folder / NODE / "node.toml", "partition-id = 1", "partition-id = 2")


def unknown_key(folder: Path) -> None:
    (folder / "server/keys/node-1.pub").unlink()


def strange_key(folder: Path) -> None:
    shutil.copy(folder / "nodes/node-0/supernode.key", folder / NODE / "supernode.key")


def store_in_a_file(folder: Path) -> None:
    edit(folder / NODE / "node.toml", '"store"', '"settings.toml/store"')


def no_data(folder: Path) -> None:
    edit(folder / NODE / "node.toml", "num-partitions", 'data-path = "images"\nnum-partitions')


def altered_peers(folder: Path) -> None:
    edit(folder / NODE / "peers.json", '"serial": 1', '"serial": 2')


def other_address(folder: Path) -> None:
    party = Party.load(folder / NODE)
    edit(folder / NODE / "settings.toml", party.peer, "127.0.0.1:1025")


def no_port(folder: Path) -> None:
    port = f"runtime-port = {Party.load(folder / NODE).runtime_port}"
    edit(folder / NODE / "settings.toml", port, "runtime-port = -5")


def no_wheel(folder: Path) -> None:
    shutil.rmtree(folder / NODE / "wheel")


def no_authority(folder: Path) -> None:
    (folder / NODE / "ca.pem").unlink()


def no_server(folder: Path) -> None:
    shutil.rmtree(folder / "server")


FAULTS = [
    (no_port, {"node-1 settings": "runtime-port is -5; allowed: 0 to 65535"}),
    (no_wheel, {"node-1 wheel": "wheel holds 0 wheels; allowed: 1"}),
    (no_authority, {"node-1 certificate": "ca.pem", "node-1 peers": "cannot read",
                    "all authority": "cannot read"}),
    (no_server, {"server settings": "server is not a folder", "all keys": "node-0.pub is missing",
                 "all authority": "cannot read"}),
    (expired, {"node-1 certificate": "node-1.pem expired on"}),
    (not_yet_valid, {"node-1 certificate": "is this machine's clock right?"}),
    (expires_soon, {"node-1 certificate": "expires in 3.0 days: renew it now"}),
    (other_host, {"superlink certificate": "is not for 127.0.0.1, where superlink is found"}),
    (other_authority, {"node-1 certificate": "was not issued by"}),
    (other_key, {"node-1 certificate": "is not the key of"}),
    (open_key, {"node-1 secrets": "can be read by others (mode 644): chmod 600"}),
    (other_version, {"node-1 versions": "where the folder was written: sh install.sh"}),
    (no_settings, {"node-1 settings": "is not valid TOML"}),
    (same_partition, {"all partitions": "node-0 and node-1 both hold partition 0",
                      "node-1 peers": "as partition 1"}),
    (partition_too_high, {"node-1 node": "partition-id 2 of 2 partitions",
                          "node-1 peers": "2 of 2", "all partitions": "2 of 2"}),
    (unknown_key, {"all keys": "the server would not let node-1 in",
                   "superlink run": "num-clients is 2, but keys/ holds the keys of 1 nodes"}),
    (strange_key, {"node-1 key": "is not the public half of supernode.key",
                   "all keys": "is not the public half"}),
    (store_in_a_file, {"node-1 store": "cannot be written"}),
    (no_data, {"node-1 data": "images is missing: put this node's images there"}),
    (altered_peers, {"node-1 peers": "is not signed by the authority"}),
    (other_address, {"node-1 peers": "it is partition 1 at 127.0.0.1:1025"}),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "wanted"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_a_planted_fault_is_found_and_named(
    federation: Path, plant: Callable[[Path], None], wanted: dict[str, str]
) -> None:
    plant(federation)
    found = problems(federation)
    assert found.keys() == wanted.keys()
    for where, words in wanted.items():
        assert words in found[where]


def test_a_folder_as_written_has_no_problem(
    federation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problems(federation) == {}
    assert main(["deploy", "check", str(federation)]) == 0
    out = capsys.readouterr().out
    assert "skipped  node-1     superlink: not reached from here" in out
    assert "0 problems in" in out


def of_data(folder: Path) -> set[tuple[str, str]]:
    return {(f.problem, f.note) for f in check_folder(folder) if f.what == "data"}


def test_own_images_are_opened_with_the_settings_of_the_run(
    new_plan: Callable[..., FederationPlan], tmp_path: Path
) -> None:
    """Pictures of many sizes, which the run brings to one."""
    changes = {"data.size": "8x8"}
    plan = new_plan(changes=changes, data="data", classes=("cat", "dog", "fox"))
    lab = tmp_path / "lab"
    write_federation(lab, plan)
    for number in range(2):
        for kind in ("cat", "dog"):
            own = lab / f"nodes/node-{number}/data/{kind}"
            own.mkdir(parents=True)
            for side in range(8, 18):
                Image.new("L", (side, 9), side).save(own / f"{side}.png")
    assert of_data(lab) == {("", "")}
    add_nodes(lab, ["127.0.0.1:1026"])
    for node in ("node-0", "node-2"):
        assert Config.load(lab / "nodes" / node / "run.toml").data.num_clients == 3
    edit(lab / NODE / "run.toml", "8x8", "")
    ((problem, _),) = of_data(lab / NODE)
    assert "data.size" in problem


def test_data_of_a_folder_without_the_settings_of_the_run_is_not_looked_at(
    federation: Path,
) -> None:
    """As written before they were there."""
    no_data(federation)
    (federation / NODE / "images").mkdir()
    (federation / NODE / "run.toml").unlink()
    ((problem, note),) = of_data(federation / NODE)
    assert not problem
    assert note.endswith("run.toml, which says how the run reads it, is missing")


def test_own_text_and_own_tables_are_read_as_such(
    new_plan: Callable[..., FederationPlan], tmp_path: Path
) -> None:
    text = {
        "run.system": "language", "data.kind": "text", "data.scheme": "natural",
        "data.dataset": "text", "extractor.method": "pretrained", "extractor.backbone": "small-lm",
        "expert.sharing": "weights", "gate.methods": "federated",
        "data.validation-per-client": 1, "text.unit": "lines", "text.near-duplicates": 0,
    }  # fmt: skip
    table = {
        "data.kind": "features", "data.dataset": "tables",
            "data.feature-columns": "size,age",
        "data.feature-means": "0,0", "data.feature-deviations": "1,1",
    }  # fmt: skip
    lines = "".join(f"line {n} of so many words\n" for n in range(200))
    rows = "".join(f"{n},{n % 7},{n % 2}\n" for n in range(40))
    for name, changes, content in (
        ("text.txt", text, lines),
        ("table.csv", table, f"size,age,label\n{rows}"),
    ):
        lab = tmp_path / name
        write_federation(lab, new_plan(changes=changes, data="data", classes=("0", "1")))
        for number in range(2):
            own = lab / f"nodes/node-{number}/data"
            own.mkdir()
            (own / name).write_text(content)
        assert of_data(lab) == {("", "")}


def test_a_clock_that_is_behind_is_told(federation: Path) -> None:
    """An hour before the folder was written; certificates are looked at with the real clock."""
    found = problems(federation / NODE, now=lambda: time.time() - 3600)
    assert "before the folder was written" in found["node-1 clock"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    for use in (check_folder, node_files):
        with pytest.raises(ConfigError, match=r"has no settings\.toml: nmoe deploy did not"):
            use(tmp_path)
        with pytest.raises(ConfigError, match=r"absent is not a folder: nmoe deploy did not"):
            use(tmp_path / "absent")


# --- the network ---


@contextmanager
def superlink(folder: Path, *, ahead: float = 0.0, tls: bool = True) -> Iterator[None]:
    """Something that answers at the SuperLink's address; its clock is ``ahead`` seconds off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + ahead)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    own = folder / "server"
    port = int(Party.load(own).superlink.rpartition(":")[2])
    server = Quiet(("127.0.0.1", port), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own / "superlink.pem", own / "superlink.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def of_node(folder: Path) -> Finding:
    (found,) = [f for f in check_folder(folder / NODE) if f.what == "superlink"]
    return found


def test_a_node_needs_the_superlink_to_be_there(federation: Path) -> None:
    assert "nothing listens there: is the SuperLink started?" in of_node(federation).problem
    with superlink(federation):
        assert problems(federation / NODE) == {}
        assert problems(federation) == {}  # the server: its own SuperLink may run already


def test_clocks_that_differ_are_told(federation: Path) -> None:
    with superlink(federation, ahead=600.0):
        found = problems(federation / NODE)
    assert found.keys() == {"node-1 clock"}
    assert "s behind the SuperLink's: set both by NTP" in found["node-1 clock"]


def test_a_superlink_without_tls_is_told(federation: Path) -> None:
    with superlink(federation, tls=False):
        assert "does not speak TLS" in of_node(federation).problem
        assert "taken by another program" in problems(federation)["superlink address"]


def test_a_superlink_of_another_federation_is_told(federation: Path) -> None:
    port = Party.load(federation / "server").superlink
    create_authority(federation / "other", name="other").issue(federation / "server", "superlink")
    with superlink(federation):
        assert f"{port}: its certificate is refused" in of_node(federation).problem


def test_a_taken_port_is_told(federation: Path) -> None:
    port = int(Party.load(federation / NODE).peer.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        assert f"port {port} of the peer service is taken" in problems(federation)["node-1 ports"]


@pytest.mark.parametrize(
    ("serving", "found"), [("node-1", set()), ("node-0", {"node-1 superlink", "node-1 ports"})]
)
def test_a_node_that_serves_is_no_problem(federation: Path, serving: str, found: set[str]) -> None:
    """Nobody needs the SuperLink after training, and the node itself has taken its port."""
    own = federation / "nodes" / serving
    files = own / f"{serving}.pem", own / f"{serving}.key", own / "ca.pem"
    server = grpc.server(ThreadPoolExecutor(1))
    place = Party.load(federation / NODE).peer
    server.add_secure_port(place, Identity.load(*files).server_credentials())
    server.start()
    try:
        assert problems(federation / NODE).keys() == found
    finally:
        server.stop(None).wait()
