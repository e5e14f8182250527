"""What ``nmoe deploy`` writes."""

import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from nmoe_flower.certificates import Authority, Identity
from nmoe_flower.cli import main
from nmoe_flower.config import Config
from nmoe_flower.deploy import FederationPlan, Party, for_deployment, places, write_federation
from nmoe_flower.deploy.places import runtime_ports
from nmoe_flower.errors import ConfigError, NMoEError
from nmoe_flower.inference import PeerList
from nmoe_flower.inference.protocol.signing import verify_list

pytestmark = pytest.mark.flower

NODE_FILES = {
    "ca.pem", "node-1.pem", "node-1.key", "supernode.key", "supernode.pub", "settings.toml",
    "node.toml", "run.toml", "peers.json", "supernode.sh", "start.sh", "serve.sh", "install.sh",
    "nmoe-supernode.service", "nmoe-peer.service", "wheel",
}  # fmt: skip
SERVER_FILES = {
    "ca.pem", "superlink.pem", "superlink.key", "settings.toml", "superlink.sh", "register.sh",
    "train.sh", "nmoe-superlink.service", "app", "keys", "install.sh", "wheel",
}  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_party_has_what_it_needs_and_no_more(federation: Path) -> None:
    assert names(federation / "nodes" / "node-1") == NODE_FILES
    assert names(federation / "server") == SERVER_FILES
    assert names(federation / "authority") == {"ca.pem", "ca.key", "peers-serial"}
    everywhere = [path.name for path in federation.rglob("*.key")]
    assert everywhere.count("ca.key") == 1  # it never leaves the authority's folder


def test_private_keys_are_for_their_owner_alone(federation: Path) -> None:
    keys = sorted(federation.rglob("*.key"))
    assert len(keys) == 6  # authority, SuperLink, two of each node
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_identities_are_of_one_authority_and_peers_are_listed(federation: Path) -> None:
    authority = Authority.load(federation / "authority")
    for name in ("node-0", "node-1"):
        own = federation / "nodes" / name
        identity = Identity.load(own / f"{name}.pem", own / f"{name}.key", own / "ca.pem")
        assert identity.name == name
        listed = PeerList.load(own / "peers.json")
        verify_list(listed, authority.certificate_pem, now=listed.issued_unix)
        assert listed.by_partition[int(name[-1])].address == Party.load(own).peer


def test_flower_reads_the_node_config_and_the_public_key(federation: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    from nmoe_flower.engine.flower import node_config

    own = federation / "nodes" / "node-1"
    assert node_config(str(own / "node.toml")) == {
        "node-name": "node-1", "partition-id": 1, "num-partitions": 2, "store": "store",
    }  # fmt: skip
    private = serialization.load_ssh_private_key((own / "supernode.key").read_bytes(), None)
    known = serialization.load_ssh_public_key(
        (federation / "server" / "keys" / "node-1.pub").read_bytes()
    )
    assert private.public_key() == known
    assert known.curve.name == "secp384r1"  # type: ignore[union-attr]


def test_the_app_is_the_run_on_all_nodes_with_nothing_pooled(federation: Path) -> None:
    project = tomllib.loads((federation / "server" / "app" / "pyproject.toml").read_text())
    flower = project["tool"]["flwr"]["app"]
    assert flower["components"]["serverapp"] == "nmoe_flower.server_app:app"
    config = Config.parse(flower["config"])
    assert (config.data.num_clients, config.run.out) == (2, "runs")
    assert config.run.wait_for_all


def test_upper_bounds_that_pool_data_are_left_out() -> None:
    config = for_deployment(Config.parse({}), 4)
    assert "global" not in config.gate.methods
    assert config.run.controls == ("fedavg", "local-classifier")
    assert for_deployment(Config.parse({"gate.methods": "local"}), 4).gate.methods == (
        "local", "federated",
    )  # fmt: skip
    sums = {"gate.methods": "lda", "head.method": "sums", "expert.hidden": ""}
    assert for_deployment(Config.parse(sums), 4).gate.methods == ("lda",)  # one exchange is enough
    told = Config.parse({
        "run.system": "language", "data.kind": "text", "data.scheme": "natural",
        "data.dataset": "text", "extractor.method": "pretrained", "extractor.backbone": "small-lm",
        "expert.sharing": "weights", "gate.methods": "posterior",
    })  # fmt: skip
    assert for_deployment(told, 4).gate.methods == ("posterior",)  # text has no latents' gate


def test_scripts_are_shell_and_work_from_any_folder(federation: Path) -> None:
    scripts = sorted(federation.rglob("*.sh"))
    assert len(scripts) == 12
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True)
        text = script.read_text()
        assert str(federation) not in text
        assert 'cd "$(dirname "$0")"' in text
        assert script.stat().st_mode & 0o100


def test_the_readme_says_where_each_folder_goes(federation: Path) -> None:
    text = (federation / "README.md").read_text()
    for folder in ("authority/", "server/", "nodes/node-0/", "nodes/node-1/"):
        assert f"`{folder}`" in text
    # identity, describe, initial, 2 rounds and 2 tests, experts, answers, 2 gate rounds, evaluation
    assert "is 12 exchanges, about 1 minute." in text


def test_own_images_are_named_in_the_node_config(
    new_plan: Callable[..., FederationPlan], tmp_path: Path
) -> None:
    plan = new_plan(data="/srv/images", classes=("cat", "dog"))
    write_federation(tmp_path / "lab", plan)
    values = tomllib.loads((tmp_path / "lab" / "nodes" / "node-0" / "node.toml").read_text())
    assert (values["data-path"], values["classes"]) == ("/srv/images", "cat,dog")


def test_what_cannot_be_is_refused(new_plan: Callable[..., FederationPlan], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="full is not empty"):
        write_federation(tmp_path / "full", new_plan())
    plan = new_plan()
    with pytest.raises(ConfigError, match="1 node; allowed: 2 or more"):
        replace(plan, peers=plan.peers[:1])
    with pytest.raises(ConfigError, match="must agree on the classes"):
        new_plan(data="images")
    with pytest.raises(ConfigError, match="2 hosts for a server and 2 nodes; allowed: 3"):
        places(["a", "b"], 2)
    with pytest.raises(ConfigError, match="two programs cannot listen at cam:7600"):
        places(["server", "cam:7600", "cam:7600"], 2)
    with pytest.raises(ConfigError, match="the address 'a b' is not host or host:port"):
        places(["a b", "c", "d"], 2)
    for own in (" cat", "cat\n", "cat,dog", "ca\tt"):
        with pytest.raises(ConfigError, match="allowed: names without commas, line breaks, and"):
            new_plan(data="images", classes=("dog", own))
    with pytest.raises(ConfigError, match="a class has no name"):
        new_plan(data="images", classes=("dog", ""))


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "224.0.0.1", "255.255.255.255"])
def test_a_machine_has_an_address_of_its_own(host: str) -> None:
    for hosts in ([host, "a", "b"], ["server", "a", host]):
        with pytest.raises(ConfigError, match="no machine is found at"):
            places(hosts, 2)


@pytest.mark.parametrize(
    ("hosts", "ports"),
    [
        (["s", "localhost", "127.0.0.1", "[::1]"], [7600, 7601, 7602]),
        (["s", "cam.lab", "CAM.lab", "Cam.Lab"], [7600, 7601, 7602]),
        (["s", "[::ffff:10.0.0.1]", "10.0.0.1", "10.0.0.2"], [7600, 7601, 7600]),
    ],
)
def test_other_names_of_a_machine_are_the_same_machine(hosts: list[str], ports: list[int]) -> None:
    assert [place.port for place in places(hosts, 3)[1]] == ports
    with pytest.raises(ConfigError, match="two programs cannot listen at"):
        places([hosts[0], *(f"{host}:7600" for host in hosts[1:])], 3)


def test_client_processes_of_one_machine_have_ports_of_their_own() -> None:
    """Of the second node, 9094 is its peers'; on another machine all is free again."""
    server, peers = places(["s", "a", "A:9094", "a:9097", "b"], 4)
    assert runtime_ports(server, peers) == (9095, 9096, 9098, 9094)
    assert runtime_ports(server, peers, (9096, 9096)) == (9096, 9098, 9095, 9094)


def test_the_number_of_clients_is_that_of_the_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["deploy", str(tmp_path / "lab"), "--nodes", "2", "--set", "data.num-clients=5"]
    assert main(words) == 1
    assert "data.num-clients is 5, but there are 2 nodes: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "lab").exists()


def app_config(folder: Path) -> Config:
    project = tomllib.loads((folder / "server" / "app" / "pyproject.toml").read_text())
    return Config.parse(project["tool"]["flwr"]["app"]["config"])


def test_the_command_writes_a_run_of_few_exchanges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a recipe: 10 rounds and one test; 3 + 10 + 1 + 2 + 10 + 1 = 27."""
    lab = tmp_path / "lab"
    hosts = ["server.lab", "cam0.lab", "cam1.lab:7700"]
    words = ["--nodes", "2", "--hosts", *hosts, "--set", "run.seed=7"]
    assert main(["deploy", str(lab), *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(lab / "server")
    assert "is 27 exchanges" in (lab / "README.md").read_text()
    config = app_config(lab)
    assert (config.run.seed, config.data.num_clients, config.extractor.rounds) == (7, 2, 10)
    assert Party.load(lab / "server").superlink == "server.lab:8000"
    assert [Party.load(lab / f"nodes/node-{i}").peer for i in range(2)] == [
        "cam0.lab:7600", "cam1.lab:7700",
    ]  # fmt: skip
    assert "--host 0.0.0.0 --port 8000" in (lab / "server" / "superlink.sh").read_text()
    assert main(["deploy", str(lab), *words]) == 1
    assert "lab is not empty" in capsys.readouterr().err


def test_a_recipe_stands_as_it_is(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[extractor]\nrounds = 9\n")
    assert main(["deploy", str(tmp_path / "lab"), "--nodes", "2", "--recipe", str(recipe)]) == 0
    config = app_config(tmp_path / "lab")
    assert (config.extractor.rounds, config.extractor.local_steps) == (9, 1)


@pytest.mark.parametrize(
    "words",
    [["--hosts", "a", "b", "b:99999"], ["--name", "Upper"], ["--data", "d"], ["--set", "run.x=1"],
     ["--wheel", "gone.whl"], ["--recipe", "gone.toml"], ["--set", "extractor.rounds=-1"],
     ["--hosts", "a", "b_c", "d"], ["--classes", "cat", "cat"], ["--classes", "cat,dog", "fox"]],
)  # fmt: skip
def test_nothing_is_written_before_all_is_checked(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lab = tmp_path / "lab"
    assert main(["deploy", str(lab), "--nodes", "2", *words]) == 1
    assert "nmoe: error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_the_middle_leaves_nothing(
    new_plan: Callable[..., FederationPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise NMoEError("no space left")

    monkeypatch.setattr("nmoe_flower.deploy.folder.dockerfile", fail)  # one of the last files
    with pytest.raises(NMoEError, match="no space left"):
        write_federation(tmp_path / "lab", new_plan())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_federation(tmp_path / "lab", new_plan())  # the same command works now


def test_machines_may_have_ipv6_addresses(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    hosts = ["[2001:db8::1]", "[2001:db8::2]", "[2001:db8::2]"]
    assert main(["deploy", str(lab), "--nodes", "2", "--hosts", *hosts]) == 0
    assert Party.load(lab / "server").superlink == "[2001:db8::1]:8000"
    peers = [Party.load(lab / f"nodes/node-{i}").peer for i in range(2)]
    assert peers == ["[2001:db8::2]:7600", "[2001:db8::2]:7601"]
    assert "[::]:7601" in (lab / "nodes/node-1/serve.sh").read_text()
    assert "--host ::" in (lab / "server/superlink.sh").read_text()
    own = lab / "nodes" / "node-1"
    identity = Identity.load(own / "node-1.pem", own / "node-1.key", own / "ca.pem")
    names = identity.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(one) for one in names.value.get_values_for_type(x509.IPAddress)] == ["2001:db8::2"]


def test_the_verbs_have_options_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, own, others in (
        ("check", "FOLDER", ("--nodes", "--days", "--hosts")),
        ("renew", "--node-key", ("--nodes", "--hosts")),
        ("add", "--hosts", ("--nodes", "--recipe")),
        ("sign", "--move", ("--nodes", "--hosts")),
        ("write", "--hosts", ("--demo",)),
        ("demo", "--demo", ("--hosts", "--days")),
    ):
        with pytest.raises(SystemExit) as left:
            main(["deploy", verb, "--help"])
        assert left.value.code == 0
        told = capsys.readouterr().out
        assert f"usage: nmoe deploy {verb}" in told
        assert own in told
        assert not [option for option in others if option in told]
