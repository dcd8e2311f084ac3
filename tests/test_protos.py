"""The committed stubs are what protos/ generates, and the speech contract has Google's numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from asr_server.wire import speech_pb2

ROOT = Path(__file__).resolve().parent.parent

# Prints {message: {field: [number, wire type, repeated]}} of Google's client; in a process of its own because Google's
# messages and ours describe the same wire.
_GOOGLE = """
import json
from google.cloud.speech_v1 import types
from google.cloud.speech_v1.types import cloud_speech, resource
fields = {}
for module in (cloud_speech, resource):
    for name in module.__protobuf__.manifest:
        message = getattr(module, name)
        if hasattr(message, "pb"):
            for each in message.pb(message()).DESCRIPTOR.fields:
                repeated = each.is_repeated
                fields.setdefault(name, {})[each.name] = [each.number, each.cpp_type, repeated]
print(json.dumps(fields))
"""
_INT32, _ENUM = 1, 8  # both are a varint on the wire; descriptions that nothing reads are kept as numbers


def test_stubs_are_up_to_date(tmp_path: Path) -> None:
    """After a change of protos/: make protos."""
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_protos.py", "--out", tmp_path], check=True, stdout=subprocess.PIPE
    )
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert {path.parts[0] for path in generated} == {"asr_server", "vision_zoo"}
    assert [str(path) for path in generated if (ROOT / path).read_text() != (tmp_path / path).read_text()] == []
    committed = {
        path.relative_to(ROOT)
        for package in ("asr_server", "vision_zoo")
        for path in (ROOT / package / "wire").iterdir()
        if path.is_file()
    }
    assert committed == set(generated)


def test_numbers_are_googles() -> None:
    answer = subprocess.run([sys.executable, "-c", _GOOGLE], check=True, stdout=subprocess.PIPE).stdout
    google: dict[str, dict[str, list[object]]] = json.loads(answer)
    ours: Mapping[str, Descriptor] = speech_pb2.DESCRIPTOR.message_types_by_name
    shared = google.keys() & ours.keys()
    assert {"RecognitionConfig", "StreamingRecognizeResponse", "PhraseSet", "WordInfo", "SpeechAdaptation"} <= shared
    for name in shared:
        for field, (number, kind, repeated) in google[name].items():
            mine = ours[name].fields_by_name.get(field)
            if mine is None:
                continue
            described_as_number = (mine.cpp_type, kind) == (_INT32, _ENUM)
            assert (mine.number, mine.is_repeated) == (number, repeated), f"{name}.{field}"
            assert mine.cpp_type == kind or described_as_number, f"{name}.{field}"
    config = {field: facts[0] for field, facts in google["RecognitionConfig"].items()}
    own = {"settings": 1000}  # far above every number that Google may come to use
    assert {field.name: field.number for field in ours["RecognitionConfig"].fields} == {**config, **own}
