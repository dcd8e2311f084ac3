"""nvidia-riva-client as its users write it, in a process of its own.

    python tests/riva_client.py HOST:PORT FILE.wav [TOKEN]

Sends the file whole and in chunks, with and without what its helpers add; prints what came back as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import riva.client

FRAMES = 1600  # of a chunk


def main(address: str, path: str, token: str = "") -> None:
    metadata = [["authorization", f"Bearer {token}"]] if token else None
    service = riva.client.ASRService(riva.client.Auth(uri=address, use_ssl=False, metadata_args=metadata))
    with open(path, "rb") as file:
        audio = file.read()
    answers: dict[str, Callable[[], Any]] = {
        "offline": lambda: offline(service, audio),
        "future": lambda: service.offline_recognize(audio, config(), future=True).result().results[0].channel_tag,
        "streaming": lambda: streaming(service, path),
        "file_script": lambda: list(map(texts, stream(service, path, riva.client.RecognitionConfig()))),
        "printed": lambda: printed(service, path),
        "printed_offline": lambda: printed_offline(service, audio),
        "boosted": lambda: list(map(texts, stream(service, path, boosted()))),
        "endpoints": lambda: list(map(texts, stream(service, path, endpoints()))),
        "custom": lambda: list(map(texts, stream(service, path, custom("beam_width:16,stop_history:4000")))),
        "models": lambda: models(service),
        "unknown_language": lambda: stream(service, path, config(language_code="ru-RU")),
        "unknown_language_offline": lambda: service.offline_recognize(audio, config(language_code="ru-RU")),
        "unknown_model": lambda: service.offline_recognize(audio, config(model="parakeet")),
        "unknown_setting": lambda: stream(service, path, custom("loudness:3")),
        "diarization": lambda: service.offline_recognize(audio, diarized()),
    }
    print(json.dumps({name: answered(answer) for name, answer in answers.items()}))


def answered(answer: Callable[[], Any]) -> Any:
    try:
        return answer()
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


def config(**fields: Any) -> Any:
    """As the file script makes it: encoding, rate and channels are left to the header of the file."""
    return riva.client.RecognitionConfig(**{"language_code": "en-US", "max_alternatives": 1, **fields})


def boosted() -> Any:
    made = config()
    riva.client.add_word_boosting_to_config(made, ["go north", "its"], 50.0)
    return made


def endpoints() -> Any:
    """A pause of two seconds, so that the file is one utterance."""
    made = config()
    riva.client.add_endpoint_parameters_to_config(made, -1, -1.0, 2000, 400, -1.0, 0.9)
    return made


def custom(pairs: str) -> Any:
    made = config()
    riva.client.add_custom_configuration_to_config(made, pairs)
    return made


def diarized() -> Any:
    made = config()
    riva.client.add_speaker_diarization_to_config(made, True, 2)
    return made


def stream(service: Any, path: str, recognition: Any, interim_results: bool = False) -> list[Any]:
    made = riva.client.StreamingRecognitionConfig(config=recognition, interim_results=interim_results)
    chunks = riva.client.AudioChunkFileIterator(path, FRAMES, None)
    return list(service.streaming_response_generator(chunks, made))


def texts(response: Any) -> list[str]:
    return [result.alternatives[0].transcript for result in response.results if result.is_final]


def streaming(service: Any, path: str) -> dict[str, Any]:
    """Every response, and how many chunks there were."""
    with riva.client.AudioChunkFileIterator(path, FRAMES, None) as chunks:
        count = sum(1 for _ in chunks)
    responses = stream(service, path, config(enable_word_time_offsets=True), interim_results=True)
    return {"chunks": count, "responses": [[described(result) for result in each.results] for each in responses]}


def described(result: Any) -> dict[str, Any]:
    best = result.alternatives[0]
    return {
        "transcript": best.transcript,
        "final": result.is_final,
        "stability": result.stability,
        "confidence": best.confidence,
        "channel": result.channel_tag,
        "processed": result.audio_processed,
        "words": [[word.word, word.start_time, word.end_time, word.confidence] for word in best.words],
    }


def offline(service: Any, audio: bytes) -> list[Any]:
    response = service.offline_recognize(audio, config(enable_word_time_offsets=True))
    return [[each.alternatives[0].transcript, each.channel_tag, each.audio_processed] for each in response.results]


def printed(service: Any, path: str) -> str:
    """What its own printer makes of a stream."""
    output = io.StringIO()
    riva.client.print_streaming(iter(stream(service, path, config(), True)), output, show_intermediate=True)
    return output.getvalue()


def printed_offline(service: Any, audio: bytes) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        riva.client.print_offline(service.offline_recognize(audio, config()))
    return output.getvalue()


def models(service: Any) -> list[Any]:
    request = riva.client.proto.riva_asr_pb2.RivaSpeechRecognitionConfigRequest()
    response = service.stub.GetRivaSpeechRecognitionConfig(request, metadata=service.auth.get_auth_metadata())
    return list(_listed(response))


def _listed(response: Any) -> Iterator[Any]:
    for each in response.model_config:
        yield [each.model_name, each.parameters["type"], each.parameters["language_code"]]


if __name__ == "__main__":
    main(*sys.argv[1:])
