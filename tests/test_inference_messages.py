"""What models of the Open Inference Protocol look like, and requests and responses, without a server."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import pytest
import torch

from tests.inference_fixtures import State, colours
from tests.vision_fixtures import picture
from vision_zoo import inference_messages as messages
from vision_zoo.inference_messages import ServedModel
from vision_zoo.wire import inference_pb2 as pb

ROWS = torch.tensor([[0.1, 0.7, 0.2], [0.25, 0.25, 0.5]])


@pytest.fixture(scope="module")
def tensors() -> Iterator[ServedModel]:
    classifier = colours()
    yield ServedModel("colours", False, classifier)
    classifier.close()


@pytest.fixture(scope="module")
def files(tensors: ServedModel) -> ServedModel:
    return ServedModel("colours_image", True, tensors.classifier)


def asking(name: str = "probabilities", **parameters: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="colours", id="seven")
    output = request.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].int64_param = value
    return request


def test_a_bundle_is_two_models(tensors: ServedModel, files: ServedModel) -> None:
    for model, name, datatype, shape in (
        (tensors, "pixels", "FP32", [-1, 3, 8, 8]),
        (files, "images", "BYTES", [-1, 1]),
    ):
        told = messages.metadata(model, ["3", "4"])
        assert (told.name, list(told.versions), told.properties["version"]) == (model.name, ["3", "4"], "3")
        assert [(each.name, each.datatype, list(each.shape)) for each in told.inputs] == [(name, datatype, shape)]
        assert [(each.name, each.datatype, list(each.shape)) for each in told.outputs] == [
            ("probabilities", "FP32", [-1, 3])
        ]
        assert json.loads(told.properties["preprocessing"])["size"] == 8


def test_configuration(tensors: ServedModel, files: ServedModel) -> None:
    pixels = messages.config(tensors).input[0]
    assert (pixels.data_type, pixels.format, list(pixels.dims)) == (pb.TYPE_FP32, pb.ModelInput.FORMAT_NCHW, [3, 8, 8])
    images = messages.config(files).input[0]
    assert (images.data_type, images.format, list(images.dims)) == (pb.TYPE_STRING, pb.ModelInput.FORMAT_NONE, [1])
    told = messages.config(tensors)
    assert (told.max_batch_size, told.dynamic_batching.max_queue_delay_microseconds) == (16, 3000)
    assert (list(told.output[0].dims), told.output[0].label_filename) == ([3], "labels.txt")


def test_a_request_is_read_as_its_model_takes_it(tensors: ServedModel, files: ServedModel) -> None:
    request = pb.ModelInferRequest(raw_input_contents=[bytes(4 * 3 * 64)])
    request.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 8, 8])
    read = messages.read_request(request, tensors, 1 << 20)
    assert isinstance(read, torch.Tensor) and torch.equal(read, torch.zeros(1, 3, 8, 8))
    request = pb.ModelInferRequest()
    request.inputs.add(name="images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(picture())
    assert messages.read_request(request, files, 1 << 20) == (picture(),)
    with pytest.raises(ValueError, match=r"image 0 has \d+ bytes; the limit is 10 bytes"):
        messages.read_request(request, files, 10)
    with pytest.raises(ValueError, match="unexpected inference input 'images'"):
        messages.read_request(request, tensors, 1 << 20)


@pytest.mark.parametrize(("shape", "count"), [([], 1), ([0], 1), ([-5, 3], 1), ([7, 1], 7), ([1 << 40], 16)])
def test_declared_images_stay_within_a_batch(tensors: ServedModel, shape: list[int], count: int) -> None:
    request = pb.ModelInferRequest()
    assert messages.declared_images(request, tensors) == 1
    request.inputs.add(shape=shape)
    assert messages.declared_images(request, tensors) == count


def test_probabilities_are_answered_raw(tensors: ServedModel) -> None:
    answer = messages.write_response(pb.ModelInferRequest(id="seven"), tensors, ROWS, 0)
    assert (answer.model_name, answer.model_version, answer.id) == ("colours", "3", "seven")
    output = answer.outputs[0]
    assert (output.name, output.datatype, list(output.shape)) == ("probabilities", "FP32", [2, 3])
    assert not output.HasField("contents")
    assert struct.unpack("<6f", answer.raw_output_contents[0]) == pytest.approx([0.1, 0.7, 0.2, 0.25, 0.25, 0.5])


def test_classes_are_named_most_probable_first(tensors: ServedModel) -> None:
    answer = messages.write_response(pb.ModelInferRequest(), tensors, ROWS[:1], 2)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [1, 2])
    green, blue = b"0.700000:1:green", b"0.200000:2:blue"
    assert answer.raw_output_contents[0] == struct.pack("<I", 16) + green + struct.pack("<I", 15) + blue
    everything = messages.write_response(pb.ModelInferRequest(), tensors, ROWS, 1000)
    assert list(everything.outputs[0].shape) == [2, 3]


def test_requested_outputs() -> None:
    assert messages.read_class_count(pb.ModelInferRequest()) == 0
    assert messages.read_class_count(asking()) == 0
    assert messages.read_class_count(asking(classification=2)) == 2
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="'classification' of output 'probabilities' must be an integer"):
            messages.read_class_count(asking(classification=wrong))
    with pytest.raises(ValueError, match=r"unexpected inference outputs \['logits'\] of model 'colours'"):
        messages.read_class_count(asking("logits"))
    twice = asking()
    twice.outputs.add(name="probabilities")
    with pytest.raises(ValueError, match="unexpected inference outputs"):
        messages.read_class_count(twice)
    with pytest.raises(ValueError, match="shared memory is not supported"):
        messages.read_class_count(asking(shared_memory_region=1))


def test_the_index_has_both_names() -> None:
    states = [State("a", "1"), State("b", "2", "UNAVAILABLE", "unloaded")]
    told = [(each.name, each.version, each.state, each.reason) for each in messages.index(states, False).models]
    assert told == [
        ("a", "1", "READY", ""),
        ("a_image", "1", "READY", ""),
        ("b", "2", "UNAVAILABLE", "unloaded"),
        ("b_image", "2", "UNAVAILABLE", "unloaded"),
    ]
    assert [each.name for each in messages.index(states, True).models] == ["a", "a_image"]


def test_the_model_to_load_is_where_either_client_puts_it() -> None:
    triton = pb.RepositoryModelLoadRequest(model_name="a")
    kserve = pb.RepositoryModelLoadRequest.FromString(b"\x0a\x01a")  # its model_name is field 1
    assert messages.model_to_change(triton) == messages.model_to_change(kserve) == "a"
    with pytest.raises(ValueError, match="model_name is empty"):
        messages.model_to_change(pb.RepositoryModelUnloadRequest())
    triton.parameters["config"].string_param = "{}"
    with pytest.raises(ValueError, match=r"parameters \['config'\] are not supported"):
        messages.model_to_change(triton)
    assert pb.RepositoryModelLoadResponse(model_name="a", is_loaded=True).SerializeToString() == b"\x0a\x01a\x10\x01"
