"""The HTTP endpoint that Prometheus scrapes: prometheus_client's WSGI application on a thread of its own."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from asr_server.metrics import Metrics

_SILENCE_SECONDS = 10.0  # a peer that sends no request for so long loses its connection and frees its thread

logger = logging.getLogger(__name__)


@contextmanager
def serve_metrics(metrics: Metrics, host: str = "127.0.0.1", port: int = 9464) -> Iterator[int]:
    """Serves GET /metrics while the context lasts; gives the port, which is a free one for port 0.

    ValueError where the address cannot be listened on. The endpoint has neither TLS nor authentication.
    """
    try:
        server = make_server(host, port, make_wsgi_app(metrics.registry), _server_class(host, port), _Handler)
    except OSError as error:
        raise ValueError(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error}; is the port in use? Choose another"
        ) from None
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        logger.debug(format, *args)


class _Server(ThreadingWSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a scrape from %s failed", client_address, exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_class(host: str, port: int) -> type[_Server]:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    return _Server6 if family == socket.AF_INET6 else _Server
