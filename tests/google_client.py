"""google-cloud-speech as its users write it, in a process of its own: its messages cannot share one with ours.

    python tests/google_client.py HOST:PORT FILE.wav

Streams the file paced in real time, then sends it whole; prints what came back, and when, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
import wave
from collections.abc import Iterator
from typing import Any

import grpc
from google.cloud import speech
from google.cloud.speech_v1.services.speech.transports import SpeechGrpcTransport

CHUNK_SECONDS = 0.1


def main(address: str, path: str) -> None:
    with wave.open(path) as file:
        rate, audio = file.getframerate(), file.readframes(file.getnframes())
    # Its annotations do not know the wrappers it really returns.
    client: Any = speech.SpeechClient(transport=SpeechGrpcTransport(channel=grpc.insecure_channel(address)))
    config = speech.RecognitionConfig(
        encoding=speech.RecognitionConfig.AudioEncoding.LINEAR16,
        sample_rate_hertz=rate,
        language_code="en-US",
        enable_word_time_offsets=True,
        max_alternatives=1,
    )
    start = time.monotonic()
    sent = 0.0

    def requests() -> Iterator[Any]:
        nonlocal sent
        size = round(rate * CHUNK_SECONDS) * 2
        for number, i in enumerate(range(0, len(audio), size), start=1):
            time.sleep(max(0.0, start + number * CHUNK_SECONDS - time.monotonic()))
            yield speech.StreamingRecognizeRequest(audio_content=audio[i : i + size])
            sent = time.monotonic() - start

    streaming = []
    streaming_config = speech.StreamingRecognitionConfig(config=config, interim_results=True)
    for response in client.streaming_recognize(config=streaming_config, requests=requests()):
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
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    unary = [result.alternatives[0].transcript for result in whole.results]
    print(json.dumps({"streaming": streaming, "sent": sent, "unary": unary, "refused": refused}))


if __name__ == "__main__":
    main(*sys.argv[1:])
