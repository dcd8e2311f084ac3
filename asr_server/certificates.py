"""The server's TLS files: read, checked so that an error names the file, and read again when they have changed.

Certificate and key are two files and cannot be replaced in one moment. A connection that comes in between finds a pair
that does not match and is served with the one before.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What a TLS server needs, as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


class CertificateFiles:
    """ValueError when the files cannot be used at the start."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._paths = (certificate, key, client_ca)
        self._lock = threading.Lock()
        self._signature = self._state()
        self.identity = read(*self._paths)

    def changed(self) -> Identity | None:
        """The new identity where the files have changed and are good. Cheap, never fails, from any thread."""
        with self._lock:
            signature = self._state()
            if signature == self._signature:
                return None
            self._signature = signature  # a bad set of files is complained about once
            try:
                self.identity = read(*self._paths)
            except ValueError as error:
                logger.error("%s; the certificate known before stays in use", error)
                return None
            if self._state() != signature:  # written while they were read: the next connection reads them again
                self._signature = ()
            logger.info("certificate %s has been read again", self._paths[0])
            return self.identity

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_signature(path) for path in self._paths if path)


def read(certificate: Path, key: Path, client_ca: Path | None) -> Identity:
    """ValueError that names the file and what is wrong with it."""
    identity = Identity(
        _pem(certificate, "certificate", b"CERTIFICATE-----"),
        _pem(key, "key", b"PRIVATE KEY-----"),
        _pem(client_ca, "client CA", b"CERTIFICATE-----") if client_ca else None,
    )
    _check_pair(certificate, key)
    if client_ca and identity.client_ca:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=identity.client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"client CA {client_ca} holds no certificate that can be read: {error}") from error
    return identity


def _pem(path: Path, what: str, mark: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror}") from error
    if mark not in content:
        raise ValueError(f"{what} {path} is not PEM: it has no line '-----BEGIN ... {mark.decode()}'")
    return content


def _check_pair(certificate: Path, key: Path) -> None:
    def no_passphrase() -> NoReturn:  # the default would ask at the terminal
        raise ValueError(f"key {key} has a passphrase, which nobody can type for a server: give the key without one")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"key {key} does not belong to certificate {certificate}") from error
        raise ValueError(f"certificate {certificate} and key {key} cannot be used: {error}") from error
    except OSError as error:  # gone since it was read
        raise ValueError(f"certificate {certificate} or key {key} cannot be read: {error.strerror}") from error


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
