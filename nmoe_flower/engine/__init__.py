"""Ways to run the clients: grids on this machine, and a SuperLink of our own."""

from nmoe_flower.engine.app_folder import export_app, write_app
from nmoe_flower.engine.cluster import Cluster, cluster_at, join_cluster, living, named_address
from nmoe_flower.engine.described import describe
from nmoe_flower.engine.fork_server import ForkServer
from nmoe_flower.engine.inprocess import InProcessGrid
from nmoe_flower.engine.programs import excerpt, require_ray
from nmoe_flower.engine.signals import interruptible, uninterrupted
from nmoe_flower.engine.spawn import cause_of_death, end_group, threads_environment
from nmoe_flower.engine.streaming import StreamingGrid
from nmoe_flower.engine.superlink import run_simulation

__all__ = [
    "Cluster",
    "ForkServer",
    "InProcessGrid",
    "StreamingGrid",
    "cause_of_death",
    "cluster_at",
    "describe",
    "end_group",
    "excerpt",
    "export_app",
    "interruptible",
    "join_cluster",
    "living",
    "named_address",
    "require_ray",
    "run_simulation",
    "threads_environment",
    "uninterrupted",
    "write_app",
]
