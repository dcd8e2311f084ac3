"""How the port is opened: plaintext, TLS or mutual TLS, with certificates that may be replaced while it serves."""

from __future__ import annotations

import grpc
import grpc.aio

from asr_server.certificates import CertificateFiles, Identity
from asr_server.security_options import SecurityOptions, check_exposure


def bind(server: grpc.aio.Server, host: str, port: int, security: SecurityOptions) -> str:
    """Take the port; returns HOST:PORT, or the path of a Unix socket. ValueError when it may or can not be done."""
    check_exposure(host, security.tls, security.tokens is not None, security.allow_insecure)
    unix = host.startswith(("unix:", "unix-abstract:"))
    name = f"[{host.strip('[]')}]" if ":" in host and not unix else host
    target = host if unix else f"{name}:{port}"
    credentials = server_credentials(security)
    try:
        bound = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise ValueError(f"{target} cannot be listened on; is the port in use? Choose another with --port")
    return target if unix else f"{name}:{bound}"


def server_credentials(security: SecurityOptions) -> grpc.ServerCredentials | None:
    """None: plaintext. ValueError when a file cannot be used."""
    if not security.certificate or not security.key:
        return None
    files = CertificateFiles(security.certificate, security.key, security.client_ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # gRPC asks before each handshake, on a thread of its own; None means that nothing has changed.
        identity = files.changed()
        return _configuration(identity) if identity else None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files.identity),
        fetch,  # type: ignore[arg-type]  # the stubs leave out the None that gRPC documents
        require_client_authentication=security.client_ca is not None,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], identity.client_ca)
