"""How our own clients reach a server: plaintext or TLS, with a token or without."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

TOKEN_VARIABLE = "EARSIGHT_TOKEN"  # not an argument, because arguments can be read by everybody on a machine


@dataclass(frozen=True)
class Connection:
    """Where a server is and what it wants to see. Paths are of PEM files."""

    server: str = "127.0.0.1:50051"
    tls: bool = False
    ca: Path | None = None  # that signed the server's certificate; None: one the system knows
    certificate: Path | None = None  # of the client, where the server asks for one
    key: Path | None = None
    token: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("--certificate and --key belong together: a client's certificate needs its key")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """With gRPC's channel options. OSError for a file that cannot be read."""
        import grpc  # not above: command lines that stay in their process also read what is here

        if not (self.tls or self.ca or self.certificate):
            return grpc.insecure_channel(self.server, options)
        pem = [path.read_bytes() if path else None for path in (self.ca, self.key, self.certificate)]
        return grpc.secure_channel(self.server, grpc.ssl_channel_credentials(*pem), options)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What `read` takes, but for the server's address."""
    group = command.add_argument_group("how to reach it", f"A token is taken from the environment: {TOKEN_VARIABLE}")
    group.add_argument("--tls", action="store_true", help="speak TLS, with the certificates that the system trusts")
    group.add_argument("--ca", type=Path, metavar="PEM", help="speak TLS, and trust the certificates that this signed")
    group.add_argument("--certificate", type=Path, metavar="PEM", help="the client's own, where the server wants one")
    group.add_argument("--key", type=Path, metavar="PEM", help="its key")


def read(args: argparse.Namespace, server: str) -> Connection:
    """The connection of a command line; the token is that of the environment. ValueError as `Connection`."""
    return Connection(server, args.tls, args.ca, args.certificate, args.key, os.environ.get(TOKEN_VARIABLE, ""))
