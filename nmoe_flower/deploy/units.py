"""The same scripts under systemd and in containers."""

import sys
from collections.abc import Sequence

from nmoe_flower import __version__
from nmoe_flower.addresses import Address
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.wheel import CONSTRAINTS, FOLDER, SUMS

__all__ = ["compose", "dockerfile", "unit"]

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
        python=python, folder=FOLDER, sums=SUMS, constraints=CONSTRAINTS, wheel=wheel
    )


def _service(service: str, folder: str, script: str, port: int, *, more: str = "") -> str:
    return _SERVICE.format(
        service=service, folder=folder, script=script, port=port, more=more, version=__version__
    )
