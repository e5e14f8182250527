"""The same scripts under systemd and in containers."""

from collections.abc import Sequence

from nmoe_flower import __version__
from nmoe_flower.deploy.party import Party

__all__ = ["compose", "dockerfile", "unit"]

_UNIT = """\
# Copy to /etc/systemd/system/; the folder of {name} is expected at /opt/nmoe/{name}, a virtual
# environment with nmoe-flower at /opt/nmoe/venv, and a user named nmoe.
[Unit]
Description=nmoe-flower: {what} of {name}
After=network-online.target time-sync.target
Wants=network-online.target

[Service]
User=nmoe
WorkingDirectory=/opt/nmoe/{name}
Environment=PATH=/opt/nmoe/venv/bin:/usr/bin:/bin
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
    port = server.superlink.rpartition(":")[2]
    services = [_service("superlink", "server", "superlink.sh", port)]
    for node in nodes:
        folder = f"nodes/{node.name}"
        services.append(_service(f"{node.name}-train", folder, "supernode.sh", port))
        listen = f', LISTEN: "0.0.0.0:{node.peer.rpartition(":")[2]}"'
        services.append(
            _service(node.name, folder, "serve.sh", port, more=listen) + '    profiles: ["serve"]\n'
        )
    return "services:\n" + "\n".join(services)


def dockerfile() -> str:
    """What the image of ``compose`` is built from."""
    return (
        "FROM python:3.11-slim\n"
        f'RUN pip install --no-cache-dir "nmoe-flower[serve]=={__version__}"\n'
    )


def _service(service: str, folder: str, script: str, port: str, *, more: str = "") -> str:
    return _SERVICE.format(
        service=service, folder=folder, script=script, port=port, more=more, version=__version__
    )
