"""What a federation's folder says to whoever opens it."""

from collections.abc import Sequence

from nmoe_flower.addresses import Address
from nmoe_flower.deploy.party import Party
from nmoe_flower.engine import flower

__all__ = ["readme"]

_TEXT = """\
# The federation {federation}

{count} nodes and a server. A whole training run is {exchanges} exchanges, about {minutes} minutes.

| folder | goes to | secret |
|---|---|---|
| `authority/` | nobody: keep it offline | yes: whoever has `ca.key` can let in anybody |
| `server/` | {server} | yes |
{rows}
Every folder brings nmoe-flower itself, in `wheel/`, with the versions of what it needs. It is on no
index: do not install it by its name.

## Start

1. Copy each folder to its machine, with its file modes (`scp -rp`, `rsync -a`).
2. On every machine, in its folder: `sh install.sh`, which makes `venv/` there, then
   `venv/bin/nmoe deploy check .`, which says in words what is wrong.
3. On the server: `sh superlink.sh`, and in another terminal `sh register.sh`.
4. On every node: `sh start.sh`. It starts the SuperNode again whenever it ends.
5. On the server: `sh train.sh`. It waits for all {count} nodes. Started again, it resumes.
6. On every node, after the training: `sh serve.sh`.
7. Ask, on any node:

       venv/bin/nmoe infer --node . IMAGE ...

Under systemd, copy `*.service` of the folder to `/etc/systemd/system/` instead of steps 3, 4
and 6. In containers: `compose.yaml`, for a federation whose hosts are the services' names
(`--hosts superlink {names}`).

## Whoever reaches the SuperLink's port can start runs

Flower serves its control interface on the same port as the nodes' ({superlink}). TLS hides what
is said, and node keys keep strange nodes out; neither keeps a stranger from submitting an app,
which then runs on the nodes. Let only the nodes and your own machine reach the port (firewall,
VPN), or have the nodes check signatures (`{signed_apps}`).

## A node's own images

{data}
"""

_SHARE = """\
No folder was named: every node takes its part of the run's data set by its partition id. For real
devices write the federation anew with `--data data --classes NAME ...`."""

_OWN = """\
`{folder}` in the node's folder (`data-path` in `node.toml`): `train/CLASS/*.png` and
`test/CLASS/*.png`. Parquet files and more with `EXTRAS=data,serve sh install.sh`. The images never
leave the node."""


def readme(
    server: Party, nodes: Sequence[Party], *, data: str, exchanges: int, minutes: int
) -> str:
    """The README of the whole folder."""
    rows = "".join(f"| `nodes/{n.name}/` | {Address.parse(n.peer).host} | yes |\n" for n in nodes)
    return _TEXT.format(
        signed_apps=flower.SIGNED_APPS,
        federation=server.federation,
        count=len(nodes),
        exchanges=exchanges,
        minutes=minutes,
        server=Address.parse(server.superlink).host,
        superlink=server.superlink,
        rows=rows,
        names=" ".join(n.name for n in nodes),
        data=_OWN.format(folder=data) if data else _SHARE,
    )
