"""Stream a WAV file in real time with Google's own client, unmodified: interim results while it plays, then the final.

pip install google-cloud-speech
python examples/google_streaming.py talk.wav --server 127.0.0.1:50051
"""

from __future__ import annotations

import argparse
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.cloud import speech_v1 as speech
from google.cloud.speech_v1.services.speech.transports import SpeechGrpcTransport

MESSAGE_SECONDS = 0.1


def messages(path: Path) -> Iterator[speech.StreamingRecognizeRequest]:
    """The samples of a 16-bit WAV file, each message when a microphone would have had it."""
    with wave.open(str(path)) as file:
        frames = round(file.getframerate() * MESSAGE_SECONDS)
        while chunk := file.readframes(frames):
            time.sleep(MESSAGE_SECONDS)
            yield speech.StreamingRecognizeRequest(audio_content=chunk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="mono WAV, 16 bits a sample")
    parser.add_argument("--server", default="127.0.0.1:50051", help="default: %(default)s")
    args = parser.parse_args()
    with wave.open(str(args.file)) as file:
        rate, seconds = file.getframerate(), file.getnframes() / file.getframerate()
    transport = SpeechGrpcTransport(channel=grpc.insecure_channel(args.server))
    config = speech.RecognitionConfig(encoding="LINEAR16", sample_rate_hertz=rate, language_code="en-US")
    streaming = speech.StreamingRecognitionConfig(config=config, interim_results=True)
    client = speech.SpeechClient(transport=transport)
    print(f"{args.file} lasts {seconds:.2f} s")
    begin = time.monotonic()
    # The client's annotations are those of its generated base class, not of the helper that is called here.
    responses = client.streaming_recognize(streaming, messages(args.file))  # type: ignore[call-arg, arg-type]
    for response in responses:
        for result in response.results:
            kind = "final" if result.is_final else "interim"
            print(f"{time.monotonic() - begin:6.2f} s  {kind:7}  {result.alternatives[0].transcript}", flush=True)


if __name__ == "__main__":
    main()
