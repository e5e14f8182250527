"""``nmoe serve`` as a user starts it: a process, signals, an exit code."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from nmoe_flower import cli
from nmoe_flower.addresses import free_ports
from nmoe_flower.certificates import Authority, Identity
from nmoe_flower.errors import BundleError
from nmoe_flower.inference import Bundle, Client, encode_tensor
from nmoe_flower.inference.protocol import PeerEntry, PeerList, sign_list
from nmoe_flower.inference.protocol.peer_pb2 import DescribeRequest, PredictRequest
from nmoe_flower.installation import install_hint

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Start ``nmoe serve``; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import sys; from nmoe_flower.cli import main;"]
        command[-1] += "sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen(
            [*command, "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def test_a_peer_from_start_to_end(
    start: Callable[..., Any],
    make_bundle: MakeBundle,
    authority: Authority,
    identities: dict[str, Identity],
    tmp_path: Path,
    peer_stub: Callable[[grpc.Channel], Any],
) -> None:
    bundle = make_bundle()
    authority.issue(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    (metrics,) = free_ports(1)
    process = start(
        bundle.folder, "--listen", "127.0.0.1:0", "--metrics-port", metrics,
        "--certificate", tmp_path / "server.pem", "--key", tmp_path / "server.key",
        "--authority", tmp_path / "ca.pem",
    )  # fmt: skip
    ready = json.loads(process.stdout.readline())
    assert ready["pid"] == process.pid
    with grpc.secure_channel(
        ready["serving"],
        identities["asker"].channel_credentials(),
        options=[("grpc.ssl_target_name_override", "server")],
    ) as channel:
        stub = peer_stub(channel)
        request = PredictRequest(
            extractor_version=bundle.extractor_version,
            latents=encode_tensor(np.ones((2, 4))),
        )
        assert stub.Predict(request, timeout=20).logits.rows == 2
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as page:
            assert b'nmoe_requests_total{peer="asker"} 1.0' in page.read()

        new = make_bundle(seed=1)
        process.send_signal(signal.SIGHUP)
        events = []
        while "swapped" not in events:
            events.append(json.loads(process.stderr.readline())["event"])
        assert events == ["serving", "swapped"]
        assert stub.Describe(DescribeRequest(), timeout=20).expert_version == new.expert_version
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    events = [json.loads(line)["event"] for line in process.stderr.read().splitlines()]
    assert events == ["renewed", "draining", "stopped"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["bundle"],
        ["bundle", "--certificate", "c"],
        ["bundle", "--certificate", "c", "--key", "k", "--authority", "a", "--insecure"],
        ["bundle", "--key", "k", "--insecure"],
        ["--insecure"],
        ["bundle", "--node", "node-0"],
        ["--node", "node-0", "--insecure"],
        ["--node", "node-0", "--peers", "peers.json"],
    ],
)
def test_keys_or_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["serve", *arguments])
    assert leaving.value.code == 2
    assert "usage: nmoe serve" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in [*sys.modules]:
        if name.startswith("nmoe_flower.inference"):
            monkeypatch.delitem(sys.modules, name)
    assert cli.main(["serve", "bundle", "--insecure"]) == 1
    message = f"nmoe serve needs prometheus_client: {install_hint('serve')}"
    assert message in capsys.readouterr().err


def test_what_is_wrong_is_said_in_words(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(make_bundle().folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for arguments, message in (
            (["nowhere", "--insecure"], "cannot read the bundle nowhere/bundle.json: No such file"),
            ([bundle, "--insecure", "--max-batch", "999999"], "max_batch = 999999"),
            ([bundle, "--insecure", "--peers", "none.json"], "the list of peers none.json"),
            ([bundle, "--insecure", "--metrics-port", str(port)], f"metrics port {port}"),
            ([bundle, "--insecure", "--listen", f"127.0.0.1:{port}"], "cannot listen on"),
            (
                [bundle, "--certificate", "c", "--key", "k", "--authority", "a"],
                "cannot read c: No such file",
            ),
        ):
            assert cli.main(["serve", *arguments]) == 1
            assert message in capsys.readouterr().err


def test_another_devices_bundle_is_not_served(
    make_bundle: MakeBundle,
    authority: Authority,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Askers know an expert by the name in the list: its answers would count as another's."""
    bundle = make_bundle()
    authority.issue(tmp_path, "server")
    keys = [f"{tmp_path}/server.pem", f"{tmp_path}/server.key", f"{tmp_path}/ca.pem"]
    Path(keys[-1]).write_bytes(authority.certificate_pem)
    now, path = int(time.time()), tmp_path / "peers.json"
    entry = PeerEntry("server", bundle.partition + 1, "127.0.0.1:7600")
    sign_list(PeerList((entry,), 1, now, now + 60), authority).write(path)
    named = dict(zip(("certificate", "key", "authority"), keys, strict=True))
    words = [word for name, file in named.items() for word in (f"--{name}", file)]
    refused = (
        f"{bundle.folder} is the bundle of partition {bundle.partition}; in the list of peers "
        f"server has partition {bundle.partition + 1}"
    )
    assert cli.main(["serve", str(bundle.folder), *words, "--peers", str(path)]) == 1
    assert refused in capsys.readouterr().err
    with pytest.raises(BundleError, match=re.escape(refused)):  # nor does it ask with it
        Client.open(bundle.folder, peers=path, **named)
