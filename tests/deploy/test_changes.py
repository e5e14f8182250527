"""A federation changes: certificates and keys are renewed, nodes are added."""

from pathlib import Path

import pytest

from nmoe_flower.certificates import Identity
from nmoe_flower.cli import main
from nmoe_flower.config import Config
from nmoe_flower.deploy import Party, add_nodes, check, renew
from nmoe_flower.deploy.party import read_toml
from nmoe_flower.errors import CertificateError, ConfigError
from nmoe_flower.inference import PeerList


def identity(folder: Path, name: str) -> Identity:
    own = folder / "nodes" / name
    return Identity.load(own / f"{name}.pem", own / f"{name}.key", own / "ca.pem")


def no_problem(folder: Path) -> bool:
    return not [found for found in check(folder) if found.problem]


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
    (federation / "authority" / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"cannot read .*ca\.key"):
        renew(federation, "node-0")


def test_an_added_node_is_known_to_all(federation: Path) -> None:
    peers = [Party.load(federation / f"nodes/node-{i}").peer for i in range(2)]
    changed = add_nodes(federation, ["127.0.0.1:1026"])
    names = sorted(path.relative_to(federation).as_posix() for path in changed)
    assert names == [
        "nodes/node-0/node.toml", "nodes/node-0/peers.json", "nodes/node-1/node.toml",
        "nodes/node-1/peers.json", "nodes/node-2", "server/app", "server/keys/node-2.pub",
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


@pytest.mark.parametrize(
    "words", [["lab"], ["check"], ["renew", "lab"], ["add", "lab"], ["a", "b", "--nodes", "3"],
              ["--demo", "3", "--nodes", "3"], ["check", "lab", "--demo", "3"]],
)  # fmt: skip
def test_wrong_usage_leaves_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["deploy", *words])
    assert left.value.code == 2
