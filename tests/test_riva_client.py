"""nvidia-riva-client, unmodified and in a process of its own, against the whole server; and Riva's field numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_server.options import ServerOptions
from asr_server.security_options import SecurityOptions
from asr_server.wire import riva_asr_pb2 as pb
from tests.speech_fixtures import RATE, save_toy_bundle, serving, speak
from tests.test_secure_server import make_token

SCRIPT = Path(__file__).with_name("riva_client.py")
PAUSE = np.zeros(round(1.2 * RATE), np.float32)

# Prints {message: {field: [number, wire type, repeated, presence]}} of Riva's client, and its encodings.
_RIVA = """
import json
from riva.client.proto import riva_asr_pb2, riva_audio_pb2, riva_common_pb2
fields, pending = {}, [*riva_asr_pb2.DESCRIPTOR.message_types_by_name.values(),
                       riva_common_pb2.DESCRIPTOR.message_types_by_name["RequestId"]]
for message in pending:
    pending += message.nested_types
    fields[message.name] = {f.name: [f.number, f.type, f.is_repeated, f.has_presence] for f in message.fields}
fields["AudioEncoding"] = dict(riva_audio_pb2.AudioEncoding.items())
print(json.dumps(fields))
"""


@dataclass(frozen=True)
class Served:
    address: str
    recording: Path
    token: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two toy bundles behind tokens, and a recording of two utterances."""
    folder = tmp_path_factory.mktemp("riva")
    save_toy_bundle(folder / "models")
    save_toy_bundle(folder / "models", "zither", language_code="de-DE")
    recording, tokens = folder / "talk.wav", folder / "tokens.json"
    soundfile.write(recording, np.concatenate([speak("go north"), PAUSE, speak("it's")]), RATE, subtype="PCM_16")
    token = make_token(tokens, "robot")
    security = SecurityOptions(tokens=tokens)
    with serving(ServerOptions(port=0, models=(folder / "models",), drain_seconds=0.5, security=security)) as server:
        yield Served(server.address, recording, token)


def run(served: Served, *token: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), served.address, str(served.recording), *token]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout
    answers: dict[str, Any] = json.loads(printed)
    return answers


@pytest.fixture(scope="module")
def answers(served: Served) -> dict[str, Any]:
    return run(served, served.token)


def said(responses: list[list[str]]) -> list[str]:
    return [text for response in responses for text in response]


def test_offline(answers: dict[str, Any]) -> None:
    assert [[text, channel] for text, channel, _ in answers["offline"]] == [["go north", 1], [" it's", 1]]
    assert 2.0 < answers["offline"][0][2] < answers["offline"][1][2] < 5.0
    assert answers["future"] == 1
    assert answers["printed_offline"].endswith("Final transcript: go north it's\n")


def test_streaming(answers: dict[str, Any]) -> None:
    """A response for each chunk; milliseconds; interims before finals."""
    chunks, responses = answers["streaming"]["chunks"], answers["streaming"]["responses"]
    assert len(responses) in (chunks, chunks + 1)
    results = [result for response in responses for result in response]
    finals = [result for result in results if result["final"]]
    assert [result["transcript"] for result in finals] == ["go north", " it's"]
    assert [word for word, *_ in finals[0]["words"]] == ["go", "north"]
    assert finals[0]["words"][1][1] == pytest.approx(900, abs=30)
    assert all(0.9 < result["confidence"] <= 1 and not result["stability"] for result in finals)
    interims = [result for result in results if not result["final"]]
    assert interims[0]["transcript"] == "g"
    assert all(result["stability"] > 0 and not result["confidence"] for result in interims)


def test_file_script(answers: dict[str, Any]) -> None:
    """Encoding 0, rate 0, channels 0, no language; the header is in the first chunk."""
    assert said(answers["file_script"]) == ["go north", " it's"]
    assert "## go north" in answers["printed"]
    assert "\r>> go no " in answers["printed"]


def test_helpers(answers: dict[str, Any]) -> None:
    """Word boosting, endpoint parameters, custom configuration."""
    assert said(answers["boosted"]) == ["go north", " it's"]
    assert said(answers["endpoints"]) == said(answers["custom"]) == ["go northit's"]
    assert answers["models"] == [
        ["tones", "online", "en-US"],
        ["tones", "offline", "en-US"],
        ["zither", "online", "de-DE"],
        ["zither", "offline", "de-DE"],
    ]


def test_refusals(answers: dict[str, Any]) -> None:
    text = "INVALID_ARGUMENT: Error: Unavailable model requested. Lang: ru-RU, Type: "
    assert (answers["unknown_language"], answers["unknown_language_offline"]) == (f"{text}online", f"{text}offline")
    assert answers["unknown_model"].startswith("INVALID_ARGUMENT: Error: Unavailable model requested. Lang: en-US")
    assert answers["unknown_setting"].startswith("INVALID_ARGUMENT: Invalid settings: 'loudness' is not known.")
    assert answers["diarization"].startswith("INVALID_ARGUMENT: Invalid recognition 'config': diarization_config")


def test_without_the_token(served: Served) -> None:
    answers = run(served, "ear_wrong")
    assert all(answer.startswith("UNAUTHENTICATED: The bearer token is not valid") for answer in answers.values())


def test_numbers_are_rivas() -> None:
    printed = subprocess.run([sys.executable, "-c", _RIVA], check=True, stdout=subprocess.PIPE).stdout
    riva: dict[str, dict[str, Any]] = json.loads(printed)
    ours, pending = {}, list(pb.DESCRIPTOR.message_types_by_name.values())
    for message in pending:
        pending += message.nested_types
        ours[message.name] = {f.name: [f.number, f.type, f.is_repeated, f.has_presence] for f in message.fields}
    assert ours == {name: fields for name, fields in riva.items() if name != "AudioEncoding"}
    assert dict(pb.AudioEncoding.items()) == riva["AudioEncoding"]
