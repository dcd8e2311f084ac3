"""Asks a server for its health over the standard gRPC protocol and says it with the exit status; for containers.

    python -m asr_server.healthcheck 127.0.0.1:50051
    python -m asr_server.healthcheck localhost:50051 --ca ca.pem

0: SERVING. 1: anything else, with one line on standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from asr_server.connection import Connection, add_arguments, read


def check(connection: Connection, service: str, timeout: float) -> str:
    """The state's name, as SERVING or NOT_SERVING; a status code's name where there was no answer."""
    with connection.channel() as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m asr_server.healthcheck", description="Exit status 0 when the server at ADDRESS is SERVING."
    )
    parser.add_argument("address", nargs="?", default="127.0.0.1:50051", metavar="ADDRESS", help="default: %(default)s")
    parser.add_argument("--service", default="", help="one service's full name instead of the whole server")
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS", help="default: %(default)s")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        state = check(read(args, args.address), args.service, args.timeout)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if state != "SERVING":
        print(f"error: {args.address} is {state}", file=sys.stderr)
    return int(state != "SERVING")


if __name__ == "__main__":
    sys.exit(main())
