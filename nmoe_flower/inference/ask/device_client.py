"""Who asks: a device's folder and files are opened, and what it has asked with is closed again."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from nmoe_flower.certificates import Identity
from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.bundle import DeviceBundle
from nmoe_flower.inference.protocol import PeerList

__all__ = ["DeviceClient", "identity_of"]

B = TypeVar("B", bound=DeviceBundle[Any])


class DeviceClient(ABC, Generic[B]):
    """A device that asks, about images or about text.

    Args:
        bundle: What this device has.
        peers: The list of who holds the other experts.
        identity: This device's certificate and key; None: no encryption.
        settings: Further arguments, of each kind its own.
    """

    _kind: ClassVar[type[DeviceBundle[Any]]]

    @abstractmethod
    def __init__(
        self, bundle: B, peers: PeerList, *, identity: Identity | None = None, **settings: Any
    ) -> None: ...

    @classmethod
    def open(
        cls,
        bundle: B | Path | str,
        *,
        peers: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        authority: Path | str | None = None,
        insecure: bool = False,
        **settings: Any,
    ) -> Self:
        """Open a device's folder and files.

        Args:
            bundle: The folder of this device's bundle, or the bundle.
            peers: Path of the list, ``peers.json``; signed, unless ``insecure``. None: nobody else
                is asked, and no certificate is needed.
            certificate: Path of this device's certificate, PEM.
            key: Path of the private key of that certificate, PEM.
            authority: Path of the federation's certificate, PEM.
            insecure: Do without these three: no encryption, and anybody may answer.
            settings: Further arguments of the class.

        Raises:
            CertificateError: A certificate or key cannot be used.
            ConfigError: Some of the three files are given and some not, or a setting is wrong.
            BundleError: The bundle is damaged, or the list of peers has this device with another
                partition.
            WireError: The list of peers cannot be used.
        """
        held: Any = bundle if isinstance(bundle, cls._kind) else cls._kind.load(Path(str(bundle)))
        if peers is None:
            return cls(held, PeerList(()), **settings)
        identity = identity_of(certificate, key, authority, insecure=insecure)
        path = Path(peers)
        settings = cls._of_list(path) | settings
        listed = PeerList.load(path)
        if identity is not None:
            listed.check_holder(identity.name, held.partition, held.folder)
        return cls(held, listed, identity=identity, **settings)

    @classmethod
    def _of_list(cls, path: Path) -> dict[str, Any]:
        """Settings that depend on where the list of peers lies."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def identity_of(
    certificate: Path | str | None,
    key: Path | str | None,
    authority: Path | str | None,
    *,
    insecure: bool,
) -> Identity | None:
    """The identity in three files, or None if ``insecure`` and none is given.

    Raises:
        CertificateError: A file cannot be used.
        ConfigError: It is neither all three, nor none and ``insecure``.
    """
    files = [Path(one) for one in (certificate, key, authority) if one is not None]
    if len(files) == 3 and not insecure:
        return Identity.load(*files)
    if files or not insecure:
        raise ConfigError(
            f"{len(files)} of certificate, key and authority are given"
            f"{' together with insecure' if insecure else ''}; allowed: all three, or insecure"
        )
    return None
