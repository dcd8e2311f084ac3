"""Who may reach the server and how. Plain data and rules: no gRPC, no file is opened here.

The rule of least surprise: without configuration only this machine can call. An address that others can reach needs
TLS; where something else protects the way (a proxy that ends TLS, a private network), `allow_insecure` says so. Tokens
do not replace TLS: whoever reads one on the way can use it (RFC 6750, section 5.3).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SecurityOptions:
    """ValueError for halves of a configuration."""

    certificate: Path | None = None  # PEM: the server's certificate, then its intermediates
    key: Path | None = None  # PEM, without a passphrase
    client_ca: Path | None = None  # PEM; given, callers must show a certificate that it signed (mutual TLS)
    tokens: Path | None = None  # token file; given, callers must send a bearer token
    allow_insecure: bool = False  # plaintext on an address that others can reach

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, lacking = ("certificate", "key") if self.certificate else ("key", "certificate")
            raise ValueError(f"a TLS {given} was given without its {lacking}: give both, or neither for plaintext")
        if self.client_ca and not self.certificate:
            raise ValueError(f"client CA {self.client_ca} needs TLS: give a certificate and its key too")

    @property
    def tls(self) -> bool:
        return self.certificate is not None

    @property
    def callers_known(self) -> bool:
        """Whether a stranger is turned away."""
        return self.tokens is not None or self.client_ca is not None


def check_exposure(host: str, tls: bool, tokens: bool, allowed: bool) -> None:
    """ValueError where others could reach the server over plaintext and nobody said that this is wanted."""
    if tls or allowed or is_loopback(host):
        return
    risk = "tokens could be read on the way" if tokens else "anybody who reaches it could call, and listen in"
    raise ValueError(
        f"host '{host}' can be reached from other machines without TLS: {risk}. Choose one: TLS (--certificate and "
        "--key), a loopback address such as 127.0.0.1, or --allow-insecure where something else protects the way"
    )


def exposure_warning(host: str, options: SecurityOptions) -> str | None:
    """What an operator should read at the start, None where nothing is unusual."""
    if is_loopback(host):
        return None
    if not options.tls:
        return f"'{host}' serves plaintext: audio, transcripts and tokens can be read on the way (--allow-insecure)"
    if not options.callers_known:
        return f"'{host}' serves everybody who reaches it: neither --tokens nor --client-ca was given"
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect. Names other than localhost are not looked up: they count as reachable."""
    if host.startswith(("unix:", "unix-abstract:")) or host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
