"""Hot words, decoding and endpointing of one call, with Google's own client, unmodified; TLS and a token where needed.

pip install google-cloud-speech
python examples/google_settings.py talk.wav --phrase "rubout" --phrase "p i t t s b u r g h" --boost 6 \\
    --set stop-history=500 --set alpha=0.6
python examples/google_settings.py talk.wav --server speech.example.com:443 --ca ca.pem --token ear_...

What Google's contract has no field for travels as metadata, `earsight-NAME`. The client's usual `streaming_recognize`
drops metadata of its callers; the method below it, of the generated client, sends it.
"""

from __future__ import annotations

import argparse
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.auth.credentials import AnonymousCredentials
from google.cloud import speech_v1 as speech
from google.cloud.speech_v1.services.speech.client import SpeechClient
from google.cloud.speech_v1.services.speech.transports import SpeechGrpcTransport

MESSAGE_SECONDS = 0.1
ANONYMOUS: Any = AnonymousCredentials  # it has no annotations


def transport(server: str, ca: Path | None) -> SpeechGrpcTransport:
    """Plaintext, or TLS with a server whose certificate this authority has signed."""
    if ca is None:
        return SpeechGrpcTransport(channel=grpc.insecure_channel(server))
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    return SpeechGrpcTransport(host=server, credentials=ANONYMOUS(), ssl_channel_credentials=credentials)


def requests(path: Path, phrases: list[str], boost: float) -> Iterator[speech.StreamingRecognizeRequest]:
    """The config, then the samples of a 16-bit WAV file."""
    with wave.open(str(path)) as file:
        config = speech.RecognitionConfig(
            encoding="LINEAR16",
            sample_rate_hertz=file.getframerate(),
            language_code="en-US",
            speech_contexts=[speech.SpeechContext(phrases=phrases, boost=boost)],
            enable_word_confidence=True,
        )
        yield speech.StreamingRecognizeRequest(streaming_config=speech.StreamingRecognitionConfig(config=config))
        while chunk := file.readframes(round(file.getframerate() * MESSAGE_SECONDS)):
            yield speech.StreamingRecognizeRequest(audio_content=chunk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="mono WAV, 16 bits a sample")
    parser.add_argument("--server", default="127.0.0.1:50051", help="default: %(default)s")
    parser.add_argument("--phrase", action="append", default=[], help="to listen for; may be given again")
    parser.add_argument("--boost", type=float, default=3.0, help="of the phrases, at most 20 (default: %(default)g)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting; may be given again"
    )
    parser.add_argument("--ca", type=Path, metavar="PEM", help="speak TLS; the authority of the server's certificate")
    parser.add_argument("--token", help="a bearer token")
    args = parser.parse_args()
    metadata = [(f"earsight-{name}", value) for name, _, value in (pair.partition("=") for pair in args.set)]
    if args.token:
        metadata.append(("authorization", f"Bearer {args.token}"))
    client = SpeechClient(transport=transport(args.server, args.ca))
    stream = requests(args.file, args.phrase, args.boost)
    for response in client.streaming_recognize(requests=stream, metadata=metadata):
        for result in response.results:
            best = result.alternatives[0]
            words = " ".join(f"{word.word}({word.confidence:.2f})" for word in best.words)
            print(f"{best.transcript.strip()}\n    confidence {best.confidence:.2f}: {words}")


if __name__ == "__main__":
    main()
