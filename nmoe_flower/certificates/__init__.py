"""Who is who: a federation's authority, and an identity (certificate and key) per device.

Keys are EC P-256, files are PEM. A device is known by the name in its certificate: it is the
common name and a DNS name, so that a caller can ask for it whatever the address is.
"""

from nmoe_flower.certificates.authority import MAX_DAYS, Authority, create_authority
from nmoe_flower.certificates.identity import (
    BAD_CERTIFICATE,
    Identity,
    Signer,
    check_name,
    is_name,
    verify_signature,
)

__all__ = [
    "BAD_CERTIFICATE",
    "MAX_DAYS",
    "Authority",
    "Identity",
    "Signer",
    "check_name",
    "create_authority",
    "is_name",
    "verify_signature",
]
