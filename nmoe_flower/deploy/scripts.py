"""The shell scripts of a party. Each works from its own folder, wherever that is copied to."""

from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import Place, is_loopback

__all__ = ["node_scripts", "server_scripts"]

_HEAD = """\
#!/bin/sh
# {purpose}
set -eu
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flwr" NMOE_CACHE="${{NMOE_CACHE:-$PWD/cache}}"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.25
export OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
"""

_SUPERLINK = """\
exec flower-superlink --host {listen} --port {port} --database superlink.db \\
    --ssl-ca-certfile ca.pem --ssl-certfile superlink.pem --ssl-keyfile superlink.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation
"""

_CONNECTION = """\
mkdir -p flwr
cat > flwr/config.toml <<END
[superlink]
default = "federation"
[superlink.federation]
address = "${{SUPERLINK:-{superlink}}}"
root-certificates = "$PWD/ca.pem"
END
cd flwr  # a folder named like the connection would be taken for an app
"""

_REGISTER = """\
for key in ../keys/*.pub; do
    name="$(basename "$key" .pub)"
    cmp -s "$key" "registered-$name" && continue
    flwr supernode register "$key" federation --name "$name"
    cp "$key" "registered-$name"
done
"""

_TRAIN = """\
RUN="${{RUN:-{run}}}"
if [ -e "../runs/$RUN/results.json" ]; then
    echo "the run $RUN is finished; for another one: RUN=name sh train.sh" >&2
    exit 1
fi
flwr run ../app federation --stream --run-config "run.name='$RUN'"
if [ ! -e "../runs/$RUN/results.json" ]; then
    echo "the run did not finish; what is above says why. Start this script again to resume" >&2
    exit 1
fi
echo "results: server/runs/$RUN/results.json"
"""

_SUPERNODE = """\
exec flower-supernode --superlink "${{SUPERLINK:-{superlink}}}" --root-certificates ca.pem \\
    --auth-supernode-private-key supernode.key --host 127.0.0.1 --port {runtime_port} \\
    --node-config node.toml
"""

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
    --listen "${{LISTEN:-{listen}:{port}}}" --peers peers.json --log json
"""


def server_scripts(party: Party) -> dict[str, str]:
    """Of the server: the SuperLink, the nodes' keys, the training."""
    place = Place.parse(party.superlink, port=1)
    about = {"superlink": party.superlink, "run": party.run, "port": place.port}
    about["listen"] = place.host if is_loopback(place.host) else "0.0.0.0"
    return {
        "superlink.sh": _script(f"The SuperLink of {party.federation}.", _SUPERLINK, about),
        "register.sh": _script(
            "Let in the SuperNodes whose public keys are in keys/; run it again after a new one.",
            _CONNECTION + _REGISTER,
            about,
        ),
        "train.sh": _script(f"Train: the run {party.run}.", _CONNECTION + _TRAIN, about),
    }


def node_scripts(party: Party) -> dict[str, str]:
    """Of a node: the SuperNode for training, then the peer service."""
    place = Place.parse(party.peer, port=1)
    about = {
        "name": party.name,
        "superlink": party.superlink,
        "run": party.run,
        "runtime_port": party.runtime_port,
        "port": place.port,
        "listen": place.host if is_loopback(place.host) else "0.0.0.0",
    }
    return {
        "supernode.sh": _script(f"{party.name} takes part in training.", _SUPERNODE, about),
        "start.sh": _script(f"Keep the SuperNode of {party.name} going.", _START, about),
        "serve.sh": _script(f"{party.name} answers its peers, after the training.", _SERVE, about),
    }


def _script(purpose: str, body: str, about: dict[str, object]) -> str:
    return (_HEAD + body).format(purpose=purpose, **about)
