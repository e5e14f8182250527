"""Questions to the network, each with a deadline."""

import socket
import ssl
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

from nmoe_flower.addresses import Address

__all__ = ["ProbeResult", "ask_superlink", "is_free", "name_shown"]

_SECONDS = 5.0


@dataclass(frozen=True)
class ProbeResult:
    """What came back from the SuperLink's address.

    Attributes:
        problem: What is wrong, in words; empty if a SuperLink answered over TLS.
        reached: Whether anything listens there.
        clock: The time there, in seconds since 1970; 0 if it did not say.
    """

    problem: str
    reached: bool
    clock: float = 0.0


def ask_superlink(place: Address, authority: Path, *, seconds: float = _SECONDS) -> ProbeResult:
    """Ask the SuperLink for its health, over TLS, with the federation's authority alone."""
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        return ProbeResult(f"{authority} cannot be used: {error}", reached=False)
    connection = HTTPSConnection(place.host, place.port, timeout=seconds, context=context)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        date = answer.getheader("date")
        clock = parsedate_to_datetime(date).timestamp() if date else 0.0
    except ssl.SSLCertVerificationError as error:
        return ProbeResult(f"its certificate is refused: {error.verify_message}", reached=True)
    except ssl.SSLError as error:
        return ProbeResult(f"it does not speak TLS: {error.reason or error}", reached=True)
    except TimeoutError:
        return ProbeResult(f"no answer within {seconds:g} s: a firewall?", reached=False)
    except ConnectionRefusedError:
        return ProbeResult("nothing listens there: is the SuperLink started?", reached=False)
    except socket.gaierror:
        return ProbeResult(f"the name {place.host} is not known here", reached=False)
    except (OSError, HTTPException, ValueError) as error:
        return ProbeResult(f"no SuperLink answers: {error or type(error).__name__}", reached=False)
    finally:
        connection.close()
    if answer.status != 200:
        return ProbeResult(f"what listens there answers {answer.status}", reached=True)
    return ProbeResult("", reached=True, clock=clock)


def name_shown(
    place: Address, certificate: Path, key: Path, authority: Path, *, seconds: float = _SECONDS
) -> str:
    """The name in the certificate that a device finds there; empty if no such device answers.

    Args:
        place: Where to look.
        certificate: What the device that looks shows itself.
        key: The key of that.
        authority: Who must have issued what it finds.
        seconds: After which nobody is there.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(certificate, key)
        with (
            socket.create_connection((place.host, place.port), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=place.host) as channel,
        ):
            shown: Any = channel.getpeercert()
    except OSError:  # an ssl.SSLError is one, too
        return ""
    subject = dict(pair for part in shown["subject"] for pair in part)
    return str(subject.get("commonName", ""))


def is_free(place: Address) -> bool:
    """Whether a program could listen there."""
    with socket.socket(socket.AF_INET6 if place.is_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((place.host, place.port))
        except OSError:
            return False
    return True
