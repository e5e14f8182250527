"""A federation on real machines: its folders, a check before the start, and a demonstration."""

from nmoe_flower.deploy.changes import add_nodes, renew, sign_peers
from nmoe_flower.deploy.checks import Finding, check
from nmoe_flower.deploy.demo import demonstrate
from nmoe_flower.deploy.federation import LocalFederation, local_plan
from nmoe_flower.deploy.folder import Plan, for_deployment, write_federation
from nmoe_flower.deploy.node_files import NodeFiles, node_files
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import places
from nmoe_flower.deploy.stage import Stage

__all__ = [
    "Finding",
    "LocalFederation",
    "NodeFiles",
    "Party",
    "Plan",
    "Stage",
    "add_nodes",
    "check",
    "demonstrate",
    "for_deployment",
    "local_plan",
    "node_files",
    "places",
    "renew",
    "sign_peers",
    "write_federation",
]
