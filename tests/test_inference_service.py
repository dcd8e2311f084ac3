"""The Open Inference Protocol on a loopback port: answers, statuses, order, and work that is never done."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.inference_fixtures import colours, serving
from tests.test_vision_bundle import save
from tests.vision_fixtures import COLOURS, TINY, MeanColour, picture
from vision_zoo.batcher import BatchOptions
from vision_zoo.classifier import Classifier
from vision_zoo.nasnet import NASNet
from vision_zoo.repository import Repository
from vision_zoo.service import Limits
from vision_zoo.wire import inference_pb2 as pb
from vision_zoo.wire.inference_pb2_grpc import GRPCInferenceServiceStub

WAIT = 20.0


class Gated(nn.Module):
    """MeanColour that waits for `gate` and records the size of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.entered.set()
        assert self.gate.wait(WAIT)
        logits: Tensor = MeanColour()(images)
        return logits


@asynccontextmanager
async def stub_of(*classifiers: Classifier, **settings: Any) -> AsyncIterator[Any]:
    async with serving(*classifiers, **settings) as (address, _), grpc.aio.insecure_channel(address) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    made = colours()
    yield made
    made.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def files(*images: bytes, model: str = "colours_image", name: str = "") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=name)
    request.inputs.add(name="images", datatype="BYTES", shape=[len(images), 1]).contents.bytes_contents.extend(images)
    return request


def tensors(values: np.ndarray, model: str = "colours") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[values.astype("<f4").tobytes()])
    request.inputs.add(name="pixels", datatype="FP32", shape=values.shape)
    return request


def named(request: pb.ModelInferRequest, count: int = 1) -> pb.ModelInferRequest:
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = count
    return request


def rows(answer: pb.ModelInferResponse) -> np.ndarray:
    values = np.frombuffer(answer.raw_output_contents[0], "<f4")
    return values.reshape(tuple(answer.outputs[0].shape))


def test_files_and_tensors_of_the_same_images_get_the_same_answer(classifier: Classifier) -> None:
    async def work() -> None:
        images = [picture(colour) for colour in COLOURS]
        pixels = np.stack([classifier.read(image).numpy() for image in images])
        async with stub_of(classifier) as stub:
            by_files = await stub.ModelInfer(files(*images, name="seven"))
            by_tensors = await stub.ModelInfer(tensors(pixels / 127.5 - 1))
        assert (by_files.model_name, by_files.model_version, by_files.id) == ("colours_image", "3", "seven")
        assert rows(by_files).argmax(axis=1).tolist() == [0, 1, 2]
        assert rows(by_files).sum(axis=1) == pytest.approx([1, 1, 1])
        np.testing.assert_allclose(rows(by_tensors), rows(by_files), atol=1e-6)

    run(work)


def test_readiness(classifier: Classifier) -> None:
    async def work() -> None:
        async with serving(classifier) as (address, service), grpc.aio.insecure_channel(address) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            for ready in (True, False):
                service.ready = ready
                assert (await stub.ServerReady(pb.ServerReadyRequest())).ready is ready
                assert (await stub.ModelReady(pb.ModelReadyRequest(name="colours"))).ready is ready
            service.ready = True
            await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="colours_image"))
            for name in ("colours", "colours_image"):
                assert not (await stub.ModelReady(pb.ModelReadyRequest(name=name, version="3"))).ready
            with pytest.raises(grpc.aio.AioRpcError, match="Request for unknown model: 'colours' version '4'"):
                await stub.ModelReady(pb.ModelReadyRequest(name="colours", version="4"))

    run(work)


REFUSED: list[tuple[pb.ModelInferRequest, grpc.StatusCode, str]] = [
    (files(picture(), model="cats"), grpc.StatusCode.NOT_FOUND, r"^Request for unknown model: 'cats' is not found"),
    (files(picture(), model=""), grpc.StatusCode.NOT_FOUND, r"^Request for unknown model: '' is not found"),
    (files(picture(), model="_image"), grpc.StatusCode.NOT_FOUND, r"^Request for unknown model: '_image' is not"),
    (files(picture(), b"hello"), grpc.StatusCode.INVALID_ARGUMENT, "^image 1: these bytes are not an image"),
    (files(b"hello"), grpc.StatusCode.INVALID_ARGUMENT, "^these bytes are not an image"),
    (files(*[b""] * 17), grpc.StatusCode.INVALID_ARGUMENT, r"unexpected shape \[17, 1\]"),
    (tensors(np.zeros((1, 3, 9, 9))), grpc.StatusCode.INVALID_ARGUMENT, r"send \[B, 3, 8, 8\], B from 1 to 16"),
    (named(files(picture()), 0), grpc.StatusCode.INVALID_ARGUMENT, "must be an integer of at least 1"),
]


def test_refused_requests_and_what_the_statistics_say(classifier: Classifier) -> None:
    async def work() -> None:
        async with stub_of(classifier) as stub:
            for request, code, text in REFUSED:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ModelInfer(request)
                assert caught.value.code() is code
                assert re.search(text, caught.value.details() or "")
            await stub.ModelInfer(files(picture(), picture()))
            told = (await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
        assert [(each.name, each.version) for each in told] == [("colours", "3"), ("colours_image", "3")]
        pixels, images = (each.inference_stats for each in told)
        assert (pixels.success.count, pixels.fail.count) == (0, 1)
        assert (images.success.count, images.fail.count) == (1, 4)
        assert (told[1].inference_count, told[1].execution_count) == (2, 1)
        parts = (images.compute_input, images.compute_infer, images.compute_output)
        assert images.success.ns == pytest.approx(sum(part.ns for part in parts), abs=10)
        assert told[1].last_inference > 1_700_000_000_000 and told[0].last_inference == 0

    run(work)


def test_a_bundle_of_the_full_name_goes_first(classifier: Classifier) -> None:
    async def work() -> None:
        async with stub_of(classifier, colours("colours_image"), colours("colours", "4")) as stub:
            told = await stub.ModelMetadata(pb.ModelMetadataRequest(name="colours_image"))
            assert told.inputs[0].name == "pixels"
            told = await stub.ModelMetadata(pb.ModelMetadataRequest(name="colours_image_image"))
            assert told.inputs[0].name == "images"
            told = await stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"))
            assert (list(told.versions), told.properties["version"]) == (["3", "4"], "4")
            answer = await stub.ModelInfer(tensors(np.zeros((1, 3, 8, 8))))
            assert answer.model_version == "4"

    run(work)


def test_a_stream_answers_in_order_and_survives_bad_requests(classifier: Classifier) -> None:
    requests = [
        named(files(picture("green"), name="a")),
        files(b"hello", name="bad"),
        files(picture(), model="cats", name="unknown"),
        named(files(picture("blue"), name="b")),
    ]

    async def work() -> None:
        async with stub_of(classifier, limits=Limits(images=2, window=3)) as stub:
            answers = [answer async for answer in stub.ModelStreamInfer(iter(requests * 5))]
        assert [answer.infer_response.id for answer in answers] == ["a", "bad", "unknown", "b"] * 5
        good, bad, unknown, other = answers[:4]
        assert not good.error_message and good.infer_response.parameters["triton_final_response"].bool_param
        assert good.infer_response.raw_output_contents[0].endswith(b":1:green")
        assert other.infer_response.raw_output_contents[0].endswith(b":2:blue")
        assert bad.error_message.startswith("these bytes are not an image") and not bad.infer_response.outputs
        assert unknown.error_message.startswith("Request for unknown model: 'cats'")

    run(work)


def test_a_repository_of_folders_serves_under_this_contract(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = save(tmp_path / "colours", NASNet(TINY)).preprocessing.size
    repository = Repository.load_all([tmp_path])
    request = tensors(np.zeros((2, 3, size, size)))

    async def work() -> None:
        async with stub_of(models=repository) as stub:
            before = await stub.ModelInfer(request)
            assert before.model_version == "1.2"
            await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="colours"))
            states = (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
            assert [(each.name, each.state) for each in states] == [
                ("colours", "UNAVAILABLE"),
                ("colours_image", "UNAVAILABLE"),
            ]
            with pytest.raises(grpc.aio.AioRpcError, match="Request for unknown model"):
                await stub.ModelInfer(request)
            await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="colours_image"))
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="colours"))).ready
            np.testing.assert_array_equal(rows(await stub.ModelInfer(request)), rows(before))

    run(work)
    repository.close()


def test_control_is_off_unless_it_is_asked_for(classifier: Classifier) -> None:
    async def work() -> None:
        async with stub_of(classifier, control=False) as stub:
            for call, request in (
                (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="colours")),
                (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="colours")),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match="is not allowed on this server") as caught:
                    await call(request)
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
            assert [each.name for each in index.models] == ["colours", "colours_image"]

    run(work)


def test_too_many_images_are_refused_and_cancelled_ones_never_run() -> None:
    model = Gated()
    classifier = colours(model=model)
    classifier.close()
    classifier = Classifier(classifier.bundle, BatchOptions(max_batch=1, max_delay=0.0))

    async def work() -> None:
        async with stub_of(classifier, limits=Limits(images=2)) as stub:
            first = asyncio.ensure_future(stub.ModelInfer(files(picture())))
            await asyncio.to_thread(model.entered.wait, WAIT)
            second = stub.ModelInfer(files(picture()))
            while classifier.waiting < 1:
                await asyncio.sleep(0.005)
            with pytest.raises(grpc.aio.AioRpcError, match="2 images are in work already") as caught:
                await stub.ModelInfer(files(picture()))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            second.cancel()
            stream = asyncio.ensure_future(_ids(stub.ModelStreamInfer(iter([files(picture(), name="late")]))))
            while classifier.waiting < 2:  # it had to wait for the place of the cancelled one, still in the queue
                await asyncio.sleep(0.005)
            model.gate.set()
            await first
            assert await stream == ["late"]
        assert model.batches == [1, 1]

    run(work)


def test_priority_and_timeout_are_tritons() -> None:
    model = Gated()
    classifier = colours(model=model)
    classifier.close()
    classifier = Classifier(classifier.bundle, BatchOptions(max_batch=1, max_delay=0.0))
    order: list[str] = []

    def wanted(name: str, **parameters: int) -> pb.ModelInferRequest:
        request = files(picture(), name=name)
        for key, value in parameters.items():
            request.parameters[key].uint64_param = value
        return request

    async def work() -> None:
        async with stub_of(classifier) as stub:

            async def ask(name: str, **parameters: int) -> None:
                order.append((await stub.ModelInfer(wanted(name, **parameters))).id)

            asked = [asyncio.ensure_future(ask("first"))]
            await asyncio.to_thread(model.entered.wait, WAIT)
            for waiting, (name, parameters) in enumerate(
                (("usual", {}), ("less", {"priority": 90}), ("most", {"priority": 1}), ("late", {"timeout": 1000}))
            ):
                asked.append(asyncio.ensure_future(ask(name, **parameters)))
                while classifier.waiting <= waiting:
                    await asyncio.sleep(0.005)
            model.gate.set()
            late = (await asyncio.gather(*asked, return_exceptions=True))[-1]
            assert isinstance(late, grpc.aio.AioRpcError) and late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert order == ["first", "most", "less", "usual"] and model.batches == [1] * 4
            for parameters, text in (
                ({"priority": 101}, "parameter 'priority' is 101: 1, the most urgent, to 100"),
                ({"timeout": -1}, "parameter 'timeout' is -1"),
            ):
                request = files(picture())
                for key, value in parameters.items():
                    request.parameters[key].int64_param = value
                with pytest.raises(grpc.aio.AioRpcError, match=text):
                    await stub.ModelInfer(request)
            request.parameters["timeout"].string_param = "soon"
            with pytest.raises(grpc.aio.AioRpcError, match="'timeout' must be an integer, not string_param"):
                await stub.ModelInfer(request)

    run(work)


async def _ids(answers: AsyncIterator[pb.ModelStreamInferResponse]) -> list[str]:
    return [answer.infer_response.id async for answer in answers]


def test_a_fault_of_the_model_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("secret detail")

    async def work() -> None:
        async with stub_of(colours(model=Broken())) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(files(picture()))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "secret" not in (caught.value.details() or "")

    run(work)
    assert "secret detail" in caplog.text
    assert torch.is_grad_enabled()
