"""A federation changes: certificates and keys are renewed, nodes are added."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.certificates import Authority, Identity
from nmoe_flower.cli import main
from nmoe_flower.config import Config
from nmoe_flower.deploy import Party, add_nodes, check_folder, renew, sign_peers
from nmoe_flower.errors import CertificateError, ConfigError, WireError
from nmoe_flower.files import read_toml
from nmoe_flower.inference import Bundle, PeerList
from nmoe_flower.models import Expert, Gate, MetricGate


def identity(folder: Path, name: str) -> Identity:
    own = folder / "nodes" / name
    return Identity.load(own / f"{name}.pem", own / f"{name}.key", own / "ca.pem")


def no_problem(folder: Path) -> bool:
    return not [found for found in check_folder(folder) if found.problem]


def test_a_renewed_certificate_has_a_new_key_and_the_same_name(federation: Path) -> None:
    before = identity(federation, "node-0")
    node_key = (federation / "server/keys/node-0.pub").read_bytes()
    changed = renew(federation, "node-0", days=30)
    after = identity(federation, "node-0")
    assert [path.name for path in changed] == ["node-0.pem", "node-0.key"]
    assert after.certificate.public_key() != before.certificate.public_key()
    assert (after.name, after.expires < before.expires) == ("node-0", True)
    assert (federation / "server/keys/node-0.pub").read_bytes() == node_key
    assert no_problem(federation)


def test_a_node_key_is_renewed_on_both_sides(
    federation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (federation / "server/keys/node-1.pub").read_bytes()
    assert main(["deploy", "renew", str(federation), "node-1", "superlink", "--node-key"]) == 0
    assert (federation / "server/keys/node-1.pub").read_bytes() != before
    assert len(capsys.readouterr().out.splitlines()) == 5 + 2
    assert no_problem(federation)


def test_only_parties_and_only_the_authority(federation: Path) -> None:
    for name in ("node-7", "../authority", ""):
        with pytest.raises(ConfigError, match="has no party"):
            renew(federation, name)
    for name, told in (
        ("zoo", "it has superlink, node-0, node-1"),
        ("node1", "did you mean node-1"),
    ):
        with pytest.raises(ConfigError, match=f"has no party '{name}'; {told}"):
            renew(federation, name)
    (federation / "authority" / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"cannot read .*ca\.key"):
        renew(federation, "node-0")


def test_an_added_node_is_known_to_all(federation: Path) -> None:
    peers = [Party.load(federation / f"nodes/node-{i}").peer for i in range(2)]
    changed = add_nodes(federation, ["127.0.0.1:1026"])
    names = sorted(path.relative_to(federation).as_posix() for path in changed)
    assert names == [
        "nodes/node-0/node.toml", "nodes/node-0/peers.json", "nodes/node-0/run.toml",
        "nodes/node-1/node.toml", "nodes/node-1/peers.json", "nodes/node-1/run.toml",
        "nodes/node-2", "server/app", "server/keys/node-2.pub",
    ]  # fmt: skip
    for number in range(3):
        own = federation / "nodes" / f"node-{number}"
        values = read_toml(own / "node.toml")
        assert (values["partition-id"], values["num-partitions"]) == (number, 3)
        listed = PeerList.load(own / "peers.json")
        assert listed.serial == 2  # so that peers take it for the newer one
        assert [peer.address for peer in listed.peers] == [*peers, "127.0.0.1:1026"]
    app = read_toml(federation / "server/app/pyproject.toml")["tool"]["flwr"]["app"]
    assert Config.parse(app["config"]).data.num_clients == 3
    assert "nodes/node-2/" in (federation / "README.md").read_text()
    assert no_problem(federation)


def test_a_taken_place_is_refused(federation: Path) -> None:
    with pytest.raises(ConfigError, match="two programs cannot listen at"):
        add_nodes(federation, [Party.load(federation / "nodes/node-0").peer])
    assert no_problem(federation)


def lists(folder: Path) -> list[PeerList]:
    return [PeerList.load(path) for path in sorted(folder.glob("nodes/*/peers.json"))]


def signed_for(folder: Path) -> float:
    """Days."""
    (listed,) = {(one.issued_unix, one.expires_unix) for one in lists(folder)}
    return (listed[1] - listed[0]) / 86_400


def test_a_list_is_signed_into_every_folder_with_one_serial_for_ever_after(
    federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, signed, signed elsewhere from an old draft, a node added: 1, 2, 3, 4."""
    assert signed_for(federation) == 365
    draft = tmp_path / "draft.json"
    lists(federation)[0].write(draft)
    assert main(["deploy", "sign", str(federation)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [str(federation / f"nodes/node-{i}/peers.json") for i in range(2)]
    assert [one.serial for one in lists(federation)] == [2, 2]
    assert signed_for(federation) == 365
    out = ["--out", str(tmp_path / "out.json")]
    words = ["peers", "--peers", str(draft), "--sign", str(federation / "authority"), *out]
    assert main(words) == 0
    assert PeerList.load(tmp_path / "out.json").serial == 3
    assert (
        main(["deploy", "add", str(federation), "--hosts", "127.0.0.1:1026", "--days", "30"]) == 0
    )
    assert [one.serial for one in lists(federation)] == [4, 4, 4]
    assert signed_for(federation) == 30
    assert no_problem(federation)


def test_a_folder_without_the_number_goes_on_from_its_lists(federation: Path) -> None:
    """As written before the number was kept beside the key."""
    (federation / "authority" / "peers-serial").unlink()
    sign_peers(federation)
    assert [one.serial for one in lists(federation)] == [2, 2]
    (federation / "authority" / "peers-serial").write_text("many\n")
    with pytest.raises(WireError, match="peers-serial holds 'many'; allowed: a whole number"):
        sign_peers(federation)


def test_a_node_moves(federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = Party.load(federation / "nodes/node-1").peer.rpartition(":")[2]
    words = ["deploy", "sign", str(federation), "--move", "node-1=[::1]"]
    assert main(words) == 0
    told = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert {"peers.json", "settings.toml", "node-1.pem", "node-1.key", "serve.sh"} <= set(told)
    assert Party.load(federation / "nodes/node-1").peer == f"[::1]:{port}"
    assert [one.by_partition[1].address for one in lists(federation)] == [f"[::1]:{port}"] * 2
    assert f"[::1]:{port}" in (federation / "nodes/node-1/serve.sh").read_text()
    assert no_problem(federation)
    for move, message in (
        ("node-7=host", "has no node 'node-7'; did you mean node-"),
        ("node-1", "allowed: NAME=HOST"),
        ("node-1=ho st", "the address 'ho st'"),
        (f"node-0=[::1]:{port}", "two programs cannot listen at"),
    ):
        assert main([*words[:-1], move]) == 1
        assert message in capsys.readouterr().err
    assert [one.serial for one in lists(federation)] == [2, 2]


def bundle_of(folder: Path, partition: int, *, form: str = "metric") -> Path:
    """A bundle of two devices whose experts lie on the axes; where experts carry embeddings."""
    metric, axes = MetricGate(4, 2, dim=2), np.eye(2, 4, dtype=np.float32)
    metric.projection.data.copy_(torch.from_numpy(axes))
    metric.embeddings.copy_(torch.eye(2))
    gate = metric if form == "metric" else Gate(4, 2)
    settings = {
        "extractor.backbone": "linear", "extractor.head": "linear", "expert.hidden": "",
        "gate.form": form, "gate.embedding": 2, "data.num-clients": 2,
    }  # fmt: skip
    return Bundle.write(
        folder,
        partition=partition,
        config=Config.parse(settings),
        classes=["ant", "bee"],
        image_shape=(1, 2, 2),
        extractor={},
        gate={name: one.numpy() for name, one in gate.state_dict().items()},
        expert={n: one.numpy() for n, one in Expert(4, 2, hidden=()).state_dict().items()},
    ).folder


def embeddings(folder: Path) -> list[list[float]]:
    found = {tuple(peer.embedding for peer in one.peers) for one in lists(folder)}
    assert len(found) == 1
    return [np.frombuffer(one, "<f4").tolist() for one in found.pop()]


def test_embeddings_of_bundles_come_into_the_list_and_stay(
    federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First of a fetched bundle, then of one in a node's folder, too; then none is there."""
    words = ["deploy", "sign", str(federation)]
    fetched = bundle_of(tmp_path / "fetched", 1)
    assert main([*words, "--bundles", str(fetched)]) == 0
    assert embeddings(federation) == [[], [0.0, 1.0]]
    here = bundle_of(federation / "nodes/node-0/bundle", 0)
    assert main(words) == 0
    assert embeddings(federation) == [[1.0, 0.0], [0.0, 1.0]]
    shutil.rmtree(here)
    assert main([*words, "--move", "node-1=[::1]"]) == 0
    assert embeddings(federation) == [[1.0, 0.0], [0.0, 1.0]]
    assert lists(federation)[0].by_partition[1].address.startswith("[::1]:")
    assert main([*words, "--bundles", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
    assert lists(federation)[0].serial == 4


def test_a_bundle_without_an_embedding_pins_no_version(federation: Path) -> None:
    """Its device may be trained anew before the list is signed again."""
    bundle_of(federation / "nodes/node-0/bundle", 0, form="linear")
    sign_peers(federation)
    assert lists(federation)[0].by_partition[0].expert_version == ""


def client_ports(folder: Path) -> list[int]:
    nodes = sorted((folder / "nodes").glob("node-*"))
    return [Party.load(node).runtime_port for node in nodes]


def test_who_comes_to_a_machine_takes_no_port_there(tmp_path: Path) -> None:
    """First by moving, then by being added, where one has left."""
    lab = tmp_path / "lab"
    hosts = ["server", "a", "a", "b"]
    assert main(["deploy", str(lab), "--nodes", "3", "--hosts", *hosts]) == 0
    assert client_ports(lab) == [9094, 9095, 9094]
    sign_peers(lab, moves={"node-2": "a:7700"})
    assert client_ports(lab) == [9094, 9095, 9096]
    assert "9096" in (lab / "nodes/node-2/supernode.sh").read_text()
    sign_peers(lab, moves={"node-0": "c"})
    add_nodes(lab, ["A", "c"])
    assert client_ports(lab) == [9094, 9095, 9096, 9094, 9095]
    assert Party.load(lab / "nodes/node-3").peer == "a:7600"


def test_who_stays_keeps_the_port_of_its_client_processes(tmp_path: Path) -> None:
    """A place that is one of these is refused; who moves onto its own takes another port."""
    lab = tmp_path / "lab"
    assert main(["deploy", str(lab), "--nodes", "2", "--hosts", "server", "a", "b"]) == 0
    before = contents(lab)
    with pytest.raises(ConfigError, match="two programs cannot listen at a:9094"):
        sign_peers(lab, moves={"node-1": "a:9094"})
    with pytest.raises(ConfigError, match="two programs cannot listen at b:9094"):
        add_nodes(lab, ["b:9094"])
    assert contents(lab) == before
    sign_peers(lab, moves={"node-0": "a:9094"})  # its own port makes room
    assert client_ports(lab) == [9095, 9094]
    assert "9095" in (lab / "nodes/node-0/supernode.sh").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("change", ["add", "renew", "sign"])
def test_a_change_is_made_whole_or_not_at_all(
    federation: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the last file but one."""
    before = contents(federation)
    made, issue = [], Authority.issue

    def fail(self: Authority, folder: Path, name: str, **options: Any) -> Identity:
        made.append(name)
        if len(made) == 2:
            raise CertificateError("cannot write: no space left")
        return issue(self, folder, name, **options)

    monkeypatch.setattr(Authority, "issue", fail)
    changes = {
        "add": lambda: add_nodes(federation, ["127.0.0.1:1026", "127.0.0.1:1027"]),
        "renew": lambda: renew(federation, "node-0", "superlink", node_key=True),
        "sign": lambda: sign_peers(federation, moves={"node-0": "[::1]", "node-1": "[::1]"}),
    }
    with pytest.raises(CertificateError, match="no space left"):
        changes[change]()
    assert contents(federation) == before
    monkeypatch.undo()
    assert changes[change]()
    assert no_problem(federation)


@pytest.mark.parametrize(
    "words", [["lab"], ["check"], ["renew", "lab"], ["add", "lab"], ["a", "b", "--nodes", "3"],
              ["--demo", "3", "--nodes", "3"], ["check", "lab", "--demo", "3"],
              ["write", "lab"], ["sign"], ["check", "lab", "--days", "3"]],
)  # fmt: skip
def test_wrong_usage_leaves_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["deploy", *words])
    assert left.value.code == 2


def test_a_table_is_no_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "table.toml"
    recipe.write_text(
        '[data]\nkind = "features"\ndataset = "a.csv"\n[extractor]\nbackbone = "mlp"\n'
    )
    assert main(["deploy", "--demo", "2", "--recipe", str(recipe)]) == 1
    told = capsys.readouterr().err
    assert "data.kind = features: the demonstration asks about images" in told
