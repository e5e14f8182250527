"""A federation on real machines: its folders, a check before the start, and a demonstration.

Its folder is written once (``folder``, from a `FederationPlan`), kept up (``maintenance``), and
looked at before a start (``checks``). Each machine is a `Party`: ``places`` says where it is,
``keys`` what it is let in with, ``wheel`` what it installs, ``scripts`` what is started there.
``demo`` plays all of it on this machine: a `LocalFederation` in a `Sandbox`.
"""

from nmoe_flower.deploy.checks import Finding, check_folder
from nmoe_flower.deploy.demo import demonstrate
from nmoe_flower.deploy.federation import LocalFederation, local_plan
from nmoe_flower.deploy.folder import FederationPlan, for_deployment, write_federation
from nmoe_flower.deploy.maintenance import add_nodes, renew, sign_peers
from nmoe_flower.deploy.party import NodeFiles, Party, node_files
from nmoe_flower.deploy.places import places
from nmoe_flower.deploy.sandbox import Sandbox

__all__ = [
    "FederationPlan",
    "Finding",
    "LocalFederation",
    "NodeFiles",
    "Party",
    "Sandbox",
    "add_nodes",
    "check_folder",
    "demonstrate",
    "for_deployment",
    "local_plan",
    "node_files",
    "places",
    "renew",
    "sign_peers",
    "write_federation",
]
