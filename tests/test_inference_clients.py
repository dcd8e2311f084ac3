"""Clients of the Open Inference Protocol and of Google's Vision API, unmodified and each in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from tests.inference_fixtures import colours, serving_elsewhere
from tests.vision_fixtures import COLOURS, picture
from vision_zoo.wire import image_annotator_pb2, inference_pb2

FOLDER = Path(__file__).parent
E10, E5 = math.exp(10), math.exp(5)

# Prints {message: {field: [number, wire type, repeated]}} of a client's stubs.
_FIELDS = """
import json
{imports}
fields, pending = {{}}, {messages}
for message in pending:
    pending += message.nested_types
    name = message.full_name.removeprefix(message.file.package + ".")
    fields[name] = {{f.name: [f.number, f.type, f.is_repeated] for f in message.fields}}
print(json.dumps(fields))
"""
_TRITON = _FIELDS.format(
    imports="from tritonclient.grpc import model_config_pb2, service_pb2",
    messages="[m for each in (model_config_pb2, service_pb2) for m in each.DESCRIPTOR.message_types_by_name.values()]",
)
_GOOGLE = _FIELDS.format(
    imports="from google.cloud.vision_v1 import types as t\nfrom google.rpc.status_pb2 import Status",
    messages="[getattr(t, name).pb(getattr(t, name)()).DESCRIPTOR for name in t.__all__ if hasattr(getattr(t, name), "
    "'pb')] + [Status.DESCRIPTOR]",
)
# KServe's, and ours for the enum of Google's whose field proto-plus calls otherwise.
_NOT_TRITONS = {
    "ModelMetadataResponse": {"properties"},
    "ModelMetadataResponse.PropertiesEntry": {"key", "value"},
    "RepositoryModelLoadResponse": {"model_name", "is_loaded"},
    "RepositoryModelUnloadResponse": {"model_name", "is_unloaded"},
}
_NOT_GOOGLES = {"Feature": {"type"}}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(picture(colour))
    return [str(folder / f"{colour}.png") for colour in COLOURS]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving_elsewhere(colours()) as address:
        yield address


def run(*command: str) -> Any:
    printed = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=True, timeout=300).stdout
    return json.loads(printed)


@pytest.fixture(scope="module")
def triton(address: str, paths: list[str]) -> dict[str, Any]:
    answers: dict[str, Any] = run(str(FOLDER / "triton_client.py"), address, paths[1], "colours")
    return answers


def test_triton_is_told_what_there_is(triton: dict[str, Any]) -> None:
    assert [triton[name] for name in ("live", "ready", "model_ready")] == [True] * 3
    assert triton["unknown_ready"].startswith("StatusCode.NOT_FOUND: Request for unknown model: 'cats' is not found")
    assert (triton["server"]["name"], triton["server"]["version"]) == ("earsight", "0.1")
    assert {"classification", "model_repository", "schedule_policy", "statistics"} <= set(
        triton["server"]["extensions"]
    )
    inputs = [{"name": "pixels", "datatype": "FP32", "shape": ["-1", "3", "8", "8"]}]
    assert (triton["metadata"]["inputs"], triton["metadata"]["versions"]) == (inputs, ["3"])
    config = triton["config"]["config"]
    assert (config["max_batch_size"], config["input"][0]["format"]) == (16, "FORMAT_NCHW")


def test_triton_infers(triton: dict[str, Any]) -> None:
    strongest = [1 / (2 + E10), 1 / (2 + E10), E10 / (2 + E10)]
    for way in ("tensors", "half"):
        assert triton[way][0] == pytest.approx(strongest, rel=1e-4)
        assert triton[way][1] == pytest.approx([1 / 3] * 3)
    assert [row.index(max(row)) for row in triton["files"]] == [1, 1]
    assert triton["requested"] == "7"
    (classes,) = triton["classes"]
    assert classes[0].split(":")[1:] == ["1", "green"] and len(classes) == 2
    assert float(classes[0].split(":")[0]) == pytest.approx(triton["files"][0][1], abs=1e-6)
    assert triton["large"] == 16


def test_triton_is_refused_with_reasons(triton: dict[str, Any]) -> None:
    assert triton["shape"].startswith("StatusCode.INVALID_ARGUMENT: input 'pixels': unexpected shape [2, 3, 9, 9]")
    assert triton["unknown"].startswith("StatusCode.NOT_FOUND: Request for unknown model: 'cats' is not found")
    assert triton["load_config"].startswith("StatusCode.INVALID_ARGUMENT: parameters ['config'] are not supported")
    assert triton["load_unknown"].startswith("StatusCode.NOT_FOUND")


def test_triton_streams(triton: dict[str, Any]) -> None:
    first, second, third = triton["stream"]
    assert (first[0], first[1][0][0].split(":")[2]) == ("a", "green")
    assert second.startswith("Request for unknown model: 'cats'")
    assert (third[0], third[1][0][0].split(":")[2]) == ("c", "blue")


def test_triton_loads_and_unloads(triton: dict[str, Any]) -> None:
    assert (triton["unload"], triton["unloaded_ready"], triton["load"]) == (None, False, None)
    states = {each["name"]: each["state"] for each in triton["unloaded_index"]["models"]}
    assert states == {"colours": "UNAVAILABLE", "colours_image": "UNAVAILABLE"}
    assert {each["state"] for each in triton["index"]["models"]} == {"READY"}


def test_triton_counts(triton: dict[str, Any]) -> None:
    """Before: one request with two files, one with one, one of the stream."""
    (told,) = triton["statistics"]["model_stats"]
    assert (told["name"], told["inference_count"], told["execution_count"]) == ("colours_image", "4", "3")
    assert told["inference_stats"]["success"]["count"] == "3"
    assert int(told["inference_stats"]["compute_infer"]["ns"]) > 0


@pytest.mark.parametrize("batch", ["1", "2"])
def test_nvidias_image_client(address: str, paths: list[str], batch: str) -> None:
    answers = run(str(FOLDER / "triton_image_client.py"), address, "colours", batch, "2", *paths)
    assert [len(rows) for rows in answers] == [2, 2, 2]
    assert [rows[0].split(":")[1:] for rows in answers] == [["0", "red"], ["1", "green"], ["2", "blue"]]


def test_google_labels(address: str, paths: list[str]) -> None:
    answers = run(str(FOLDER / "google_vision_client.py"), address, "colours", *paths)
    assert answers["label_detection"][0][0] == "red" and len(answers["label_detection"]) == 3
    assert sum(score for _, score in answers["label_detection"]) == pytest.approx(1)
    assert answers["max_results"] == answers["label_detection"][:2]
    assert [labels[0][0] for labels in answers["batch"]] == list(COLOURS)
    assert answers["broken"].startswith("3: these bytes are not an image")
    assert answers["elsewhere"].startswith("3: image.source: this server fetches no images")
    assert answers["faces"].startswith("3: features ['FACE_DETECTION']; this server has one, LABEL_DETECTION")


@pytest.mark.parametrize(
    ("script", "stubs", "own"),
    [(_TRITON, inference_pb2, _NOT_TRITONS), (_GOOGLE, image_annotator_pb2, _NOT_GOOGLES)],
    ids=["triton", "google"],
)
def test_numbers_are_theirs(script: str, stubs: Any, own: dict[str, set[str]]) -> None:
    theirs: dict[str, dict[str, list[object]]] = run("-c", script)
    pending: list[Descriptor] = list(stubs.DESCRIPTOR.message_types_by_name.values())
    for message in pending:
        pending += message.nested_types
        name = message.full_name.removeprefix(f"{message.file.package}.")
        for field in message.fields:
            if field.name not in own.get(name, set()):
                facts = [field.number, field.type, field.is_repeated]
                assert theirs[name][field.name] == facts, f"{name}.{field.name}"
    assert len(pending) > 8
