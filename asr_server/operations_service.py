"""google.longrunning's Operations for what runs in the background: get, list, wait, cancel, delete.

Calls of it are let in whatever the load: who asks, and who cancels, makes no work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from asr_server.gate import Context
from asr_server.long_running import LongRunning
from asr_server.operations import Operation, UnknownOperationError
from asr_server.wire import operations_pb2 as pb
from asr_server.wire import speech_pb2

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Operations"]
SERVICE_NAME = DESCRIPTOR.full_name
GOOGLE_SERVICE_NAME = "google.longrunning.Operations"  # the same numbers on the wire, see operations.proto

# By Google's names, not ours: clients look for the message that they know.
_TYPE = "type.googleapis.com/google.cloud.speech.v1.LongRunningRecognize"


class OperationsService:
    """`Operations` of operations.proto."""

    def __init__(self, runner: LongRunning) -> None:
        self._runner = runner

    async def get_operation(self, request: pb.GetOperationRequest, context: Context) -> speech_pb2.Operation:
        async with _answering(context):
            return message(self._runner.get(request.name))
        raise AssertionError("every error ends the call")

    async def list_operations(self, request: pb.ListOperationsRequest, context: Context) -> pb.ListOperationsResponse:
        async with _answering(context):
            if request.filter:
                raise ValueError("filter is not supported: leave it empty.")
            shown, token = self._runner.page(request.page_size, request.page_token)
            return pb.ListOperationsResponse(operations=map(message, shown), next_page_token=token)
        raise AssertionError("every error ends the call")

    async def wait_operation(self, request: pb.WaitOperationRequest, context: Context) -> speech_pb2.Operation:
        async with _answering(context):
            seconds = _seconds(request.timeout) if request.HasField("timeout") else None
            return message(await self._runner.wait(request.name, seconds))
        raise AssertionError("every error ends the call")

    async def cancel_operation(self, request: pb.CancelOperationRequest, context: Context) -> Empty:
        async with _answering(context):
            self._runner.cancel(request.name)
        return Empty()

    async def delete_operation(self, request: pb.DeleteOperationRequest, context: Context) -> Empty:
        async with _answering(context):
            self._runner.delete(request.name)
        return Empty()


def message(operation: Operation) -> speech_pb2.Operation:
    """As Google's clients unpack it."""
    metadata = speech_pb2.LongRunningRecognizeMetadata(
        progress_percent=operation.percent,
        start_time=_timestamp(operation.started),
        last_update_time=_timestamp(operation.updated),
        uri=operation.uri,
    )
    written = speech_pb2.Operation(
        name=operation.name,
        metadata=AnyMessage(type_url=f"{_TYPE}Metadata", value=metadata.SerializeToString()),
        done=operation.done,
    )
    if operation.failure:
        written.error.code, written.error.message = operation.failure.code, operation.failure.text
    elif operation.done:
        written.response.CopyFrom(AnyMessage(type_url=f"{_TYPE}Response", value=operation.response))
    return written


def add_to_server(service: OperationsService, server: grpc.aio.Server) -> None:
    """Register one servicer under our name and under Google's."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetOperation": grpc.unary_unary_rpc_method_handler(
            service.get_operation,
            request_deserializer=pb.GetOperationRequest.FromString,
            response_serializer=speech_pb2.Operation.SerializeToString,
        ),
        "ListOperations": grpc.unary_unary_rpc_method_handler(
            service.list_operations,
            request_deserializer=pb.ListOperationsRequest.FromString,
            response_serializer=pb.ListOperationsResponse.SerializeToString,
        ),
        "WaitOperation": grpc.unary_unary_rpc_method_handler(
            service.wait_operation,
            request_deserializer=pb.WaitOperationRequest.FromString,
            response_serializer=speech_pb2.Operation.SerializeToString,
        ),
        "CancelOperation": grpc.unary_unary_rpc_method_handler(
            service.cancel_operation,
            request_deserializer=pb.CancelOperationRequest.FromString,
            response_serializer=Empty.SerializeToString,
        ),
        "DeleteOperation": grpc.unary_unary_rpc_method_handler(
            service.delete_operation,
            request_deserializer=pb.DeleteOperationRequest.FromString,
            response_serializer=Empty.SerializeToString,
        ),
    }
    names = (SERVICE_NAME, GOOGLE_SERVICE_NAME)
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(name, handlers) for name in names))


@asynccontextmanager
async def _answering(context: Context) -> AsyncIterator[None]:
    """Ends the call with a status where something is wrong."""
    try:
        yield
    except UnknownOperationError as error:
        await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    except ValueError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def _seconds(timeout: Duration) -> float:
    seconds = timeout.seconds + timeout.nanos * 1e-9
    if seconds < 0:
        raise ValueError(f"timeout is {seconds} seconds; it must not be negative.")
    return float(seconds)


def _timestamp(seconds: float) -> Timestamp:
    whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=microseconds * 1000)
