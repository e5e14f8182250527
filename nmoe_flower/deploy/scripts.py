"""The shell scripts of a party. Each works from its own folder, wherever that is copied to."""

from collections.abc import Mapping

from nmoe_flower.addresses import Address
from nmoe_flower.deploy.party import Party
from nmoe_flower.deploy.places import listening
from nmoe_flower.deploy.wheel import CONSTRAINTS, FOLDER, SUMS
from nmoe_flower.engine import flower

__all__ = ["install_script", "node_scripts", "server_scripts"]

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


def install_script(wheel: str) -> str:
    """What makes the virtual environment of any party."""
    return _INSTALL.format(folder=FOLDER, sums=SUMS, constraints=CONSTRAINTS, wheel=wheel)


def server_scripts(party: Party) -> dict[str, str]:
    """Of the server: the SuperLink, the nodes' keys, the training."""
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
    """Of a node: the SuperNode for training, then the peer service."""
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
