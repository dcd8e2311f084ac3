"""google-cloud-speech as its users write it, in a process of its own: its messages cannot share one with ours.

    python tests/google_client.py HOST:PORT FILE.wav
    python tests/google_client.py HOST:PORT FILE.wav --way async --ca CA.pem --metadata earsight-alpha=0.5

Streams the file, then sends it whole; prints what came back as JSON. As `helper` (paced in real time, with the times
at which results came), with the `plain` method, which is the one of the two that sends metadata, or `async`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import wave
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import speech
from google.cloud.speech_v1.services.speech.client import SpeechClient as PlainClient
from google.cloud.speech_v1.services.speech.transports import SpeechGrpcAsyncIOTransport, SpeechGrpcTransport

CHUNK_SECONDS = 0.1

Metadata = Sequence[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("path")
    parser.add_argument("--way", choices=("helper", "plain", "async"), default="helper")
    parser.add_argument("--ca", type=Path, help="of a server with TLS")
    parser.add_argument("--metadata", action="append", default=[], help="NAME=VALUE")
    told = parser.parse_args()
    with wave.open(told.path) as file:
        rate, audio = file.getframerate(), file.readframes(file.getnframes())
    metadata = [(name, value) for name, _, value in (pair.partition("=") for pair in told.metadata)]
    if told.way == "async":
        print(json.dumps(asyncio.run(asynchronous(told.address, told.ca, rate, audio, metadata))))
    elif told.way == "plain":
        print(json.dumps(plain(PlainClient(transport=transport(told.address, told.ca)), rate, audio, metadata)))
    else:
        print(json.dumps(paced(speech.SpeechClient(transport=transport(told.address, told.ca)), rate, audio)))


ANONYMOUS: Any = AnonymousCredentials  # it has no annotations


def transport(address: str, ca: Path | None) -> Any:
    """Given an endpoint alone the client would look for Google's credentials and roots."""
    if ca is None:
        return SpeechGrpcTransport(channel=grpc.insecure_channel(address))
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    return SpeechGrpcTransport(host=address, credentials=ANONYMOUS(), ssl_channel_credentials=credentials)


def async_transport(address: str, ca: Path | None) -> Any:
    if ca is None:
        return SpeechGrpcAsyncIOTransport(channel=grpc.aio.insecure_channel(address))
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    return SpeechGrpcAsyncIOTransport(host=address, credentials=ANONYMOUS(), ssl_channel_credentials=credentials)


def recognition_config(rate: int) -> Any:
    return speech.RecognitionConfig(
        encoding=speech.RecognitionConfig.AudioEncoding.LINEAR16,
        sample_rate_hertz=rate,
        language_code="en-US",
        enable_word_time_offsets=True,
        max_alternatives=1,
    )


def chunks(audio: bytes, rate: int) -> Iterator[Any]:
    size = round(rate * CHUNK_SECONDS) * 2
    for start in range(0, len(audio), size):
        yield speech.StreamingRecognizeRequest(audio_content=audio[start : start + size])


def requests(audio: bytes, rate: int) -> Iterator[Any]:
    streaming_config = speech.StreamingRecognitionConfig(config=recognition_config(rate))
    yield speech.StreamingRecognizeRequest(streaming_config=streaming_config)
    yield from chunks(audio, rate)


def finals(results: Any) -> list[str]:
    return [result.alternatives[0].transcript for result in results]


def paced(client: Any, rate: int, audio: bytes) -> dict[str, Any]:
    """Its annotations do not know the wrappers it really returns."""
    start = time.monotonic()
    sent = 0.0

    def in_real_time() -> Iterator[Any]:
        nonlocal sent
        for number, chunk in enumerate(chunks(audio, rate), start=1):
            time.sleep(max(0.0, start + number * CHUNK_SECONDS - time.monotonic()))
            yield chunk
            sent = time.monotonic() - start

    config = recognition_config(rate)
    streaming = []
    streaming_config = speech.StreamingRecognitionConfig(config=config, interim_results=True)
    for response in client.streaming_recognize(config=streaming_config, requests=in_real_time()):
        for result in response.results:
            best = result.alternatives[0]
            streaming += [
                {
                    "at": time.monotonic() - start,
                    "final": result.is_final,
                    "stability": result.stability,
                    "transcript": best.transcript,
                    "words": [[word.word, word.start_time.total_seconds()] for word in best.words],
                }
            ]
    whole = client.recognize(config=config, audio=speech.RecognitionAudio(content=audio))
    try:
        client.recognize(
            config=speech.RecognitionConfig(language_code="en-US", model="nobody"), audio={"content": b"x"}
        )
        refused = ""
    except GoogleAPICallError as error:
        refused = f"{type(error).__name__}: {error}"
    return {"streaming": streaming, "sent": sent, "unary": finals(whole.results), "refused": refused}


def plain(client: Any, rate: int, audio: bytes, metadata: Metadata) -> dict[str, Any]:
    try:
        responses = list(client.streaming_recognize(requests=requests(audio, rate), metadata=metadata))
        content = speech.RecognitionAudio(content=audio)
        whole = client.recognize(config=recognition_config(rate), audio=content, metadata=metadata)
    except GoogleAPICallError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"streaming": finals(r for each in responses for r in each.results), "unary": finals(whole.results)}


async def asynchronous(address: str, ca: Path | None, rate: int, audio: bytes, metadata: Metadata) -> dict[str, Any]:
    client: Any = speech.SpeechAsyncClient(transport=async_transport(address, ca))

    async def sent() -> AsyncIterator[Any]:
        for request in requests(audio, rate):
            yield request

    try:  # first what is sent at once: of a stream that is refused while it writes, grpc.aio may lose the status
        content = speech.RecognitionAudio(content=audio)
        whole = await client.recognize(config=recognition_config(rate), audio=content, metadata=metadata)
        responses = [each async for each in await client.streaming_recognize(requests=sent(), metadata=metadata)]
    except GoogleAPICallError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"streaming": finals(r for each in responses for r in each.results), "unary": finals(whole.results)}


if __name__ == "__main__":
    main()
