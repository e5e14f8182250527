"""What a federation's folder brings for whoever runs it: README, shell scripts, units, containers.

The scripts are what everything else starts. Each works from its own folder, wherever that is
copied to.
"""

import sys
from collections.abc import Mapping, Sequence

from nmoe_flower import __version__
from nmoe_flower.addresses import Address
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import listening
from nmoe_flower.deploy.wheel import CHECKSUMS, CONSTRAINTS, WHEEL
from nmoe_flower.engine import flower
from nmoe_flower.plurals import how_many

__all__ = [
    "compose",
    "dockerfile",
    "install_script",
    "node_scripts",
    "readme",
    "server_scripts",
    "unit",
]

_TEXT = """\
# The federation {federation}

{count} nodes and a server. A whole training run is {exchanges}, about {minutes}.

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

_HEAD = (
    """\
#!/bin/sh
# {purpose}
set -eu
cd "$(dirname "$0")"
export NMOE_CACHE="${{NMOE_CACHE:-$PWD/cache}}"
"""
    + flower.SCRIPT_EXPORTS
    + "export OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1\n"
    + 'if [ -d venv ]; then PATH="$PWD/venv/bin:$PATH"; fi  # of install.sh\nexport PATH\n'
)

_SUPERLINK = "exec " + flower.SCRIPT_SUPERLINK

_REGISTER = f"""\
for key in ../keys/*.pub; do
    name="$(basename "$key" .pub)"
    cmp -s "$key" "registered-$name" && continue
    {flower.SCRIPT_REGISTER}\
    cp "$key" "registered-$name"
done
"""

_TRAIN = (
    """\
RUN="${{RUN:-{run}}}"
if [ -e "../runs/$RUN/results.json" ]; then
    echo "the run $RUN is finished; for another one: RUN=name sh train.sh" >&2
    exit 1
fi
"""
    + flower.SCRIPT_RUN
    + """\
if [ ! -e "../runs/$RUN/results.json" ]; then
    echo "the run did not finish; what is above says why. Start this script again to resume" >&2
    exit 1
fi
echo "results: server/runs/$RUN/results.json"
"""
)

_SUPERNODE = "exec " + flower.SCRIPT_SUPERNODE

_START = """\
# A killed node is let in again only after its last heartbeat has expired (60 s): try until then.
while true; do
    sh supernode.sh || true
    echo "{name}: the SuperNode ended; starting it again" >&2
    sleep 5
done
"""

_SERVE = """\
nmoe bundle --store "store/${{RUN:-{run}}}" --out bundle
exec nmoe serve bundle --certificate {name}.pem --key {name}.key --authority ca.pem \\
    --listen "${{LISTEN:-{listen}}}" --peers peers.json --log json
"""


_INSTALL = """\
#!/bin/sh
# Install what this folder brings into venv/: the wheel, if it is the one that was written here, and
# the versions in constraints.txt of all it needs. Started again, it does nothing.
#   EXTRAS=data,serve   also for parquet files and the hub (serve)
#   TORCH_INDEX=URL     where to look for torch first, as for the build without CUDA:
#                       https://download.pytorch.org/whl/cpu
#   PYTHON=python3.11   of which Python (python3)
set -eu
cd "$(dirname "$0")"
cd {folder}
EXTRAS="${{EXTRAS:-serve}}"
sha256sum -c {sums}
wanted="$(cat {sums}) $EXTRAS"
[ "$(cat ../venv/installed 2>/dev/null || true)" = "$wanted" ] && exit 0
"${{PYTHON:-python3}}" -m venv ../venv
../venv/bin/pip install ${{TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}} \\
    -c {constraints} "./{wheel}[$EXTRAS]"
echo "$wanted" > ../venv/installed
"""

_UNIT = """\
# Copy to /etc/systemd/system/; the folder of {name} is expected at /opt/nmoe/{name}, as property of
# a user named nmoe. The first start installs the folder's wheel into its venv/.
[Unit]
Description=nmoe-flower: {what} of {name}
After=network-online.target time-sync.target
Wants=network-online.target

[Service]
User=nmoe
WorkingDirectory=/opt/nmoe/{name}
Environment=PATH=/usr/bin:/bin PIP_NO_CACHE_DIR=1
ExecStartPre=/bin/sh /opt/nmoe/{name}/install.sh
TimeoutStartSec=infinity
ExecStart=/bin/sh /opt/nmoe/{name}/{script}
Restart=always
RestartSec=5
NoNewPrivileges=true
ProtectSystem=strict
ReadWritePaths=/opt/nmoe/{name}
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""

_SERVICE = """\
  {service}:
    image: nmoe-flower:{version}
    build: .
    volumes: ["./{folder}:/party"]
    working_dir: /party
    command: ["sh", "{script}"]
    environment: {{SUPERLINK: "superlink:{port}"{more}}}
    restart: unless-stopped
"""


def readme(
    server: Party, nodes: Sequence[Party], *, data: str, exchanges: int, minutes: int
) -> str:
    """The README of the whole folder."""
    rows = "".join(f"| `nodes/{n.name}/` | {Address.parse(n.peer).host} | yes |\n" for n in nodes)
    return _TEXT.format(
        signed_apps=flower.SIGNED_APPS,
        federation=server.federation,
        count=len(nodes),
        exchanges=how_many(exchanges, "exchange"),
        minutes=how_many(minutes, "minute"),
        server=Address.parse(server.superlink).host,
        superlink=server.superlink,
        rows=rows,
        names=" ".join(n.name for n in nodes),
        data=_OWN.format(folder=data) if data else _SHARE,
    )


def install_script(wheel: str) -> str:
    """What makes the virtual environment of any party."""
    return _INSTALL.format(folder=WHEEL, sums=CHECKSUMS, constraints=CONSTRAINTS, wheel=wheel)


def server_scripts(party: Party) -> dict[str, str]:
    """Scripts of the server: the SuperLink, the nodes' keys, the training."""
    place = listening(Address.parse(party.superlink))
    about = {"superlink": party.superlink, "run": party.run}
    about |= {"listen": place.host, "port": str(place.port)}
    return {
        "superlink.sh": _script(f"The SuperLink of {party.federation}.", _SUPERLINK, about),
        "register.sh": _script(
            "Let in the SuperNodes whose public keys are in keys/; run it again after a new one.",
            flower.SCRIPT_CONNECTION + _REGISTER,
            about,
        ),
        "train.sh": _script(
            f"Train: the run {party.run}.", flower.SCRIPT_CONNECTION + _TRAIN, about
        ),
    }


def node_scripts(party: Party) -> dict[str, str]:
    """Scripts of a node: the SuperNode for training, then the peer service."""
    about = {
        "name": party.name,
        "superlink": party.superlink,
        "run": party.run,
        "runtime_port": party.runtime_port,
        "listen": listening(Address.parse(party.peer)),
    }
    return {
        "supernode.sh": _script(f"{party.name} takes part in training.", _SUPERNODE, about),
        "start.sh": _script(f"Keep the SuperNode of {party.name} going.", _START, about),
        "serve.sh": _script(f"{party.name} answers its peers, after the training.", _SERVE, about),
    }


def _script(purpose: str, body: str, about: Mapping[str, object]) -> str:
    return (_HEAD + body).format(purpose=purpose, **about)


def unit(party: Party, *, what: str, script: str) -> str:
    """A systemd unit that runs one script and starts it again when it ends."""
    return _UNIT.format(name=party.name, what=what, script=script)


def compose(server: Party, nodes: Sequence[Party]) -> str:
    """A compose file of the SuperLink, every SuperNode, and (profile ``serve``) every peer.

    It is for a federation whose hosts are the services' names.
    """
    port = Address.parse(server.superlink).port
    services = [_service("superlink", "server", "superlink.sh", port)]
    for node in nodes:
        folder = f"nodes/{node.name}"
        services.append(_service(f"{node.name}-train", folder, "supernode.sh", port))
        listen = f', LISTEN: "0.0.0.0:{Address.parse(node.peer).port}"'
        services.append(
            _service(node.name, folder, "serve.sh", port, more=listen) + '    profiles: ["serve"]\n'
        )
    return "services:\n" + "\n".join(services)


_DOCKERFILE = """\
# The image of compose.yaml: the wheel of this folder, and the versions in its constraints.
# Torch comes without CUDA; with it: --build-arg TORCH_INDEX=https://pypi.org/simple
FROM python:{python}-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /install
COPY {folder}/ ./
RUN sha256sum -c {sums} \\
    && pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c {constraints} \\
       "./{wheel}[serve]"
"""


def dockerfile(wheel: str) -> str:
    """What the image of ``compose`` is built from."""
    python = ".".join(map(str, sys.version_info[:2]))  # the constraints are of this one
    return _DOCKERFILE.format(
        python=python, folder=WHEEL, sums=CHECKSUMS, constraints=CONSTRAINTS, wheel=wheel
    )


def _service(service: str, folder: str, script: str, port: int, *, more: str = "") -> str:
    return _SERVICE.format(
        service=service, folder=folder, script=script, port=port, more=more, version=__version__
    )
