"""A small synchronous client of the vision service: many images through one stream, and a bundle to be served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from asr_server.connection import Connection
from vision_zoo import registration
from vision_zoo.classifier import Prediction
from vision_zoo.wire import vision_pb2 as pb
from vision_zoo.wire.vision_pb2_grpc import VisionStub

CONNECT_SECONDS = 10.0
PIECE_BYTES = 1 << 20  # of a file, in one message


class ClientError(ValueError):
    """The server cannot be reached or refused the whole call."""


@contextmanager
def _errors(server: str) -> Iterator[None]:
    """gRPC's, as ClientError."""
    try:
        yield
    except grpc.FutureTimeoutError:
        raise ClientError(f"no server answers at {server}; start one with: asr-server serve") from None
    except grpc.RpcError as error:
        code, text = error.code().name, error.details()
        raise ClientError(f"the server at {server} ended the call with {code}: {text}") from None


def classify(
    connection: Connection, files: Sequence[bytes], model: str = "", top_k: int = 0
) -> Iterator[list[Prediction] | ValueError]:
    """Sends files to a server; yields for each, in order, its predictions or why there are none.

    Raises ClientError.
    """
    requests = (
        pb.ClassifyStreamRequest(
            request_id=str(number), request=pb.ClassifyRequest(image=file, model=model, top_k=top_k)
        )
        for number, file in enumerate(files)
    )
    # The service refuses a file that is too large with a reason of its own; the transport's limit says less.
    with connection.channel([("grpc.max_send_message_length", -1)]) as channel, _errors(connection.server):
        grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
        for answer in VisionStub(channel).ClassifyStream(requests, metadata=connection.metadata):
            yield _result(answer)


def _result(answer: pb.ClassifyStreamResponse) -> list[Prediction] | ValueError:
    if answer.WhichOneof("result") == "error":
        return ValueError(answer.error.message)
    return [Prediction(each.index, each.label, each.probability) for each in answer.response.predictions]


def register(connection: Connection, folder: Path, alias: str = "") -> str:
    """Sends a bundle's files to a server, where it is served from then on -> NAME@VERSION.

    Raises ClientError, and ValueError where the folder is no vision bundle.
    """
    files = registration.announce(folder)
    with connection.channel() as channel, _errors(connection.server):
        grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
        answer = VisionStub(channel).Register(_upload(folder, files, alias), metadata=connection.metadata)
    return f"{answer.model.name}@{answer.model.version}"


def _upload(folder: Path, files: Sequence[registration.Announced], alias: str) -> Iterator[pb.RegisterRequest]:
    listed = [pb.RegisteredFile(name=file.name, bytes=file.size, sha256=file.sha256) for file in files]
    yield pb.RegisterRequest(header=pb.RegisterHeader(files=listed, alias=alias))
    for file in files:
        with (folder / file.name).open("rb") as opened:
            while data := opened.read(PIECE_BYTES):
                yield pb.RegisterRequest(data=data)
