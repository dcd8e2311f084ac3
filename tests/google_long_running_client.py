"""google-cloud-speech with recordings in the background, as its users write it, in a process of its own.

    python tests/google_long_running_client.py HOST:PORT FILE.wav LONG_URI

Sends the file and waits for its results; names the long recording, cancels it under way; asks for what is there and
removes it. Prints what came back as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.cloud import speech
from google.cloud.speech_v1.services.speech.transports import SpeechGrpcTransport

CONFIG = speech.RecognitionConfig(language_code="en-US")  # the rest stands in the header
TIMEOUT = 120.0


def main() -> None:
    address, path, uri = sys.argv[1:]
    transport: Any = SpeechGrpcTransport(channel=grpc.insecure_channel(address))
    client: Any = speech.SpeechClient(transport=transport)  # its annotations do not know what the wrappers return
    content = {"content": Path(path).read_bytes()}
    answer = {
        "finished": finished(client, content),
        "settings": transcripts(begin(client, content, metadata=[("earsight-stop_history", "4000")])),
        "failed": failed(lambda: transcripts(begin(client, content, sample_rate_hertz=8000))),
        "refused": failed(lambda: begin(client, {"uri": "gs://bucket/talk.wav"})),
        "cancelled": cancelled(client, uri),
        "listed": listed(transport.operations_client),
    }
    print(json.dumps(answer))


def begin(client: Any, audio: Any, metadata: Any = (), **fields: Any) -> Any:
    config = speech.RecognitionConfig(CONFIG, **fields)
    return client.long_running_recognize(config=config, audio=audio, metadata=metadata)


def finished(client: Any, audio: Any) -> dict[str, Any]:
    operation = begin(client, audio)
    at_once = {"done": operation.operation.done, "type": type(operation.metadata).__name__}
    response = operation.result(timeout=TIMEOUT)
    return {
        "at_once": at_once,
        "transcripts": [result.alternatives[0].transcript for result in response.results],
        "type": type(response).__name__,
        "billed": response.total_billed_time.total_seconds(),
        "request_id": response.request_id,
        "percent": operation.metadata.progress_percent,
        "seconds": (operation.metadata.last_update_time - operation.metadata.start_time).total_seconds(),
        "done": operation.done(),
    }


def transcripts(operation: Any) -> list[str]:
    return [result.alternatives[0].transcript for result in operation.result(timeout=TIMEOUT).results]


def failed(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except GoogleAPICallError as error:
        return f"{type(error).__name__}: {error.message}"
    return "not at all"


def cancelled(client: Any, uri: str) -> dict[str, Any]:
    operation = begin(client, {"uri": uri})
    deadline = time.monotonic() + TIMEOUT
    while operation.metadata.progress_percent < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
        operation.done()  # which asks the server
    operation.cancel()
    return {
        "uri": operation.metadata.uri,
        "error": failed(lambda: operation.result(timeout=TIMEOUT)),
        "cancelled": operation.cancelled(),
        "percent": operation.metadata.progress_percent,
    }


def listed(operations: Any) -> dict[str, Any]:
    """With the client that comes with the library."""
    found = list(operations.list_operations(name="", filter_=""))
    last = operations.get_operation(found[0].name)
    for operation in found:
        operations.delete_operation(operation.name)
    return {
        "codes": [operation.error.code for operation in found],
        "same": last == found[0],
        "deleted": failed(lambda: operations.get_operation(last.name)),
        "left": len(list(operations.list_operations(name="", filter_=""))),
    }


if __name__ == "__main__":
    main()
