"""``--node FOLDER``: the files of a node's folder, and of no other node."""

from pathlib import Path

import pytest

from nmoe_flower.deploy import node_files
from nmoe_flower.errors import ConfigError
from nmoe_flower.files import write_json


def test_the_files_are_those_of_the_folder(federation: Path) -> None:
    folder = federation / "nodes" / "node-1"
    with pytest.raises(ConfigError, match="has no bundle yet"):
        node_files(folder)
    write_json(folder / "bundle" / "bundle.json", {"partition": 1})
    found = node_files(folder)
    assert found.bundle == folder / "bundle"
    assert found.certificate == folder / "node-1.pem"


def test_the_bundle_of_another_node_is_refused(federation: Path) -> None:
    """Its expert would answer for this node's, and nobody would know."""
    folder = federation / "nodes" / "node-0"
    for other in ({"partition": 1}, {}, []):
        write_json(folder / "bundle" / "bundle.json", other)
        with pytest.raises(ConfigError, match=r"node\.toml says 0: the bundle is another node's"):
            node_files(folder)
    assert node_files(folder, trained=False).listen.startswith("127.0.0.1:")
