"""The files a peer lives on, and what to do when they change: nobody is restarted."""

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from nmoe_flower.certificates import Identity
from nmoe_flower.errors import NMoEError
from nmoe_flower.inference.bundle import MANIFEST, Bundle, TextBundle, open_bundle
from nmoe_flower.inference.protocol import PeerList, verify_list
from nmoe_flower.inference.serve.service import ExpertServer
from nmoe_flower.inference.telemetry import log_event

__all__ = ["SourceWatch", "Sources"]

_log = logging.getLogger(__name__)
_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True)
class Sources:
    """Where a peer's parts come from.

    Attributes:
        bundle: The bundle's folder.
        keys: Paths of certificate, key, and the authority's certificate; None: no encryption.
        peers: The list of peers to hand on, ``peers.json``; with certificates it must be signed.
            None: there is none.
    """

    bundle: Path
    keys: tuple[Path, Path, Path] | None = None
    peers: Path | None = None

    def load_bundle(self) -> Bundle | TextBundle:
        """Read the bundle. Raises as `Bundle.load`."""
        return open_bundle(self.bundle)

    def load_identity(self) -> Identity | None:
        """Read certificate and key. Raises as `Identity.load`."""
        return Identity.load(*self.keys) if self.keys else None

    def load_peers(
        self, identity: Identity | None, held: Bundle | TextBundle | None = None
    ) -> PeerList | None:
        """Read the list of peers.

        Args:
            identity: Who this peer is, and whose authority must have signed the list.
            held: The bundle that it serves.

        Raises:
            WireError: It cannot be read, is out of date, or is not signed by the authority.
            BundleError: It has this peer with another partition than the bundle's.
        """
        if self.peers is None:
            return None
        peers = PeerList.load(self.peers)
        if identity is not None:
            verify_list(peers, identity.authority_pem, now=time.time())
            if held is not None:
                peers.check_holder(identity.name, held.partition, held.folder)
        return peers


class SourceWatch:
    """Notices that a source has changed, and has the server take it up.

    What cannot be read is logged and changes nothing; it is tried again when it changes again.

    Args:
        server: The server that lives on them; it has taken them up as they are now.
        sources: The files to look at.
    """

    def __init__(self, server: ExpertServer, sources: Sources) -> None:
        self._server = server
        self._sources = sources
        self._seen = self._stamps()

    async def look(self, *, again: bool = False) -> None:
        """Take up what has changed since the last look; with ``again``, everything."""
        stamps = self._stamps()
        changed = {name for name in stamps if again or stamps[name] != self._seen[name]}
        self._seen = stamps
        for name, take_up in (
            ("bundle", self._bundle),
            ("identity", self._identity),
            ("peers", self._peers),
        ):
            if name in changed:
                try:
                    await take_up()
                except NMoEError as error:
                    log_event(_log, logging.ERROR, "not-taken-up", what=name, detail=str(error))

    async def _bundle(self) -> None:
        bundle = await asyncio.to_thread(self._sources.load_bundle)
        if bundle.manifest != self._server.bundle.manifest:
            await self._server.swap(bundle)

    async def _identity(self) -> None:
        identity = self._sources.load_identity()
        if identity is not None:
            self._server.renew(identity)

    async def _peers(self) -> None:
        peers = self._sources.load_peers(self._sources.load_identity(), self._server.bundle)
        if peers is not None:
            self._server.peer_list = peers.to_message()
            log_event(_log, logging.INFO, "peer-list", serial=peers.serial, peers=len(peers.peers))

    def _stamps(self) -> dict[str, list[_Stamp]]:
        sources = self._sources
        return {
            "bundle": [_stamp(sources.bundle / MANIFEST)],
            "identity": [_stamp(path) for path in sources.keys or ()],
            "peers": [_stamp(sources.peers)] if sources.peers else [],
        }


def _stamp(path: Path) -> _Stamp:
    """Changes whenever a file is replaced; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
