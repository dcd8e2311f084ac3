"""The vision service on a real loopback port: answers, statuses, order, batching, cancellation."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from torch import Tensor, nn

from tests.vision_fixtures import COLOURS, MeanColour, colour_bundle, encoded, noise, picture
from vision_zoo import inference_service, service
from vision_zoo.batcher import BatchOptions
from vision_zoo.classifier import Classifier
from vision_zoo.images import ImageError
from vision_zoo.inference_service import InferenceService
from vision_zoo.neighbours import EmbeddingSets
from vision_zoo.registration import Registry
from vision_zoo.repository import Repository
from vision_zoo.service import Limits, VisionService
from vision_zoo.wire import inference_pb2
from vision_zoo.wire import vision_pb2 as pb
from vision_zoo.wire.inference_pb2_grpc import GRPCInferenceServiceStub
from vision_zoo.wire.vision_pb2_grpc import VisionStub

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
async def serving(
    *classifiers: Classifier,
    limits: Limits | None = None,
    repository: Repository | None = None,
    folder: Path | None = None,
    sets: EmbeddingSets | None = None,
) -> AsyncIterator[Any]:
    """-> a stub of a server with these models. folder: where it takes in what clients bring."""
    server = grpc.aio.server()
    repository = repository or Repository.of(classifiers)
    vision = VisionService(repository, limits, Registry(folder, repository) if folder else None, sets)
    service.add_to_server(vision, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield VisionStub(channel)
    finally:
        await server.stop(0)
        vision.close()


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    made = Classifier(colour_bundle())
    yield made
    made.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), 60)

    asyncio.run(limited())


def request(name: str, colour: str = "red", model: str = "", top_k: int = 0) -> pb.ClassifyStreamRequest:
    inner = pb.ClassifyRequest(image=picture(colour), model=model, top_k=top_k)
    return pb.ClassifyStreamRequest(request_id=name, request=inner)


def test_an_image_goes_in_and_labels_come_out(classifier: Classifier) -> None:
    async def work() -> None:
        async with serving(classifier) as stub:
            answer = await stub.Classify(pb.ClassifyRequest(image=picture("blue"), model="colours", top_k=2))
            assert answer.predictions[0].label == "blue"
            assert len(answer.predictions) == 2 and answer.predictions[0].index == 2
            assert (answer.model, answer.model_version) == ("colours", "3")
            everything = await stub.Classify(pb.ClassifyRequest(image=picture("green", kind="WEBP"), top_k=99))
            assert len(everything.predictions) == 3
            assert sum(each.probability for each in everything.predictions) == pytest.approx(1)

    run(work)


def test_models_are_listed_and_chosen_by_name(classifier: Classifier) -> None:
    class Opposite(MeanColour):
        def forward(self, images: Tensor) -> Tensor:
            return -super().forward(images)

    other = Classifier(colour_bundle("opposite", Opposite()))

    async def work() -> None:
        async with serving(classifier, other) as stub:
            models = (await stub.ListModels(pb.ListModelsRequest())).models
            assert [model.name for model in models] == ["colours", "opposite"]
            assert tuple(models[0].labels) == COLOURS
            assert (models[0].input_size, models[0].version, models[0].parameters) == (8, "3", 0)
            first, second = [
                await stub.Classify(pb.ClassifyRequest(image=picture("red"), model=name)) for name in ("", "opposite")
            ]
            assert (first.model, first.predictions[0].label) == ("colours", "red")
            assert (second.model, second.predictions[-1].label) == ("opposite", "red")

    run(work)


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        (pb.ClassifyRequest(image=b"hello"), "INVALID_ARGUMENT", "these bytes are not an image; send one of JPEG"),
        (pb.ClassifyRequest(), "INVALID_ARGUMENT", "the image is empty"),
        (pb.ClassifyRequest(image=picture()[:60]), "INVALID_ARGUMENT", "broken PNG"),
        (pb.ClassifyRequest(image=picture(), top_k=-1), "INVALID_ARGUMENT", "top_k -1 must be at least 1"),
        (pb.ClassifyRequest(image=picture(size=(40, 40))), "INVALID_ARGUMENT", "the limit is 1,000 pixels"),
        (pb.ClassifyRequest(image=bytes(3000)), "INVALID_ARGUMENT", "image of 3000 bytes; the limit is 2000 bytes"),
        (pb.ClassifyRequest(image=picture(), model="cats"), "NOT_FOUND", r"'cats' is unknown; choose from \['colours'"),
    ],
)
def test_errors_have_a_status_and_name_the_rule(call: pb.ClassifyRequest, code: str, text: str) -> None:
    classifier = Classifier(colour_bundle(), pixel_limit=1000)

    async def work() -> None:
        async with serving(classifier, limits=Limits(image_bytes=2000)) as stub:
            with pytest.raises(grpc.aio.AioRpcError, match=text) as caught:
                await stub.Classify(call)
            assert caught.value.code() is grpc.StatusCode[code]

    run(work)


def test_a_server_without_models_says_so() -> None:
    async def work() -> None:
        async with serving() as stub:
            assert not (await stub.ListModels(pb.ListModelsRequest())).models
            with pytest.raises(grpc.aio.AioRpcError, match="this server has no vision model") as caught:
                await stub.Classify(pb.ClassifyRequest(image=picture()))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(work)


def test_two_models_of_one_name_are_refused(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="two vision models are called 'colours'"):
        VisionService([classifier, classifier])


def test_what_fails_inside_is_internal_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("secret detail")

    async def work() -> None:
        async with serving(Classifier(colour_bundle(model=Broken()))) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(pb.ClassifyRequest(image=picture()))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "secret" not in (caught.value.details() or "")

    run(work)
    assert "secret detail" in caplog.text


def test_a_stream_answers_in_order_and_survives_bad_images(classifier: Classifier) -> None:
    bad = pb.ClassifyStreamRequest(request_id="bad", request=pb.ClassifyRequest(image=b"hello"))
    requests = [request("a", "red"), bad, request("b", "green", top_k=1), request("c", model="cats"), request("d")]

    async def work() -> None:
        async with serving(classifier) as stub:
            answers = [answer async for answer in stub.ClassifyStream(iter(requests * 10))]
        assert [answer.request_id for answer in answers] == ["a", "bad", "b", "c", "d"] * 10
        first, second, third, fourth, fifth = answers[:5]
        assert first.response.predictions[0].label == fifth.response.predictions[0].label == "red"
        assert [each.label for each in third.response.predictions] == ["green"]
        assert second.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and "not an image" in second.error.message
        assert fourth.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert [answer.WhichOneof("result") for answer in answers[:3]] == ["response", "error", "response"]

    run(work)


def test_a_stream_answers_before_the_client_sends_more(classifier: Classifier) -> None:
    async def work() -> None:
        async with serving(classifier) as stub:
            call = stub.ClassifyStream()
            for colour in ("red", "blue"):
                await call.write(request(colour, colour))
                answer = await call.read()
                assert answer.request_id == answer.response.predictions[0].label == colour
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    run(work)


def test_images_of_one_stream_and_concurrent_calls_share_batches() -> None:
    model = Gated()
    classifier = Classifier(colour_bundle(model=model), BatchOptions(max_batch=8, max_delay=0.0))

    async def work() -> None:
        async with serving(classifier) as stub:
            first = asyncio.ensure_future(stub.Classify(pb.ClassifyRequest(image=picture())))
            await asyncio.to_thread(model.entered.wait, WAIT)
            stream = asyncio.ensure_future(collect(stub.ClassifyStream(iter([request(str(i)) for i in range(4)]))))
            calls = [asyncio.ensure_future(stub.Classify(pb.ClassifyRequest(image=picture(c)))) for c in COLOURS]
            while classifier.waiting < 7:
                await asyncio.sleep(0.005)
            model.gate.set()
            await first
            assert [answer.request_id for answer in await stream] == ["0", "1", "2", "3"]
            assert [(await call).predictions[0].label for call in calls] == list(COLOURS)
        assert model.batches == [1, 7]

    run(work)


async def collect(call: AsyncIterator[pb.ClassifyStreamResponse]) -> list[pb.ClassifyStreamResponse]:
    return [answer async for answer in call]


def test_too_many_calls_are_refused_and_streams_wait_instead() -> None:
    model = Gated()
    classifier = Classifier(colour_bundle(model=model), BatchOptions(max_batch=1, max_delay=0.0))

    async def work() -> None:
        async with serving(classifier, limits=Limits(images=2)) as stub:
            held = [asyncio.ensure_future(stub.Classify(pb.ClassifyRequest(image=picture()))) for _ in range(2)]
            while classifier.waiting < 1 or not model.entered.is_set():
                await asyncio.sleep(0.005)
            with pytest.raises(grpc.aio.AioRpcError, match="2 images are in work already") as caught:
                await stub.Classify(pb.ClassifyRequest(image=picture()))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            stream = asyncio.ensure_future(collect(stub.ClassifyStream(iter([request("s")] * 5))))
            model.gate.set()
            assert all(answer.WhichOneof("result") == "response" for answer in await stream)
            await asyncio.gather(*held)
            await stub.Classify(pb.ClassifyRequest(image=picture()))

    run(work)


def test_the_limit_is_one_for_all_contracts() -> None:
    model = Gated()
    classifier = Classifier(colour_bundle(model=model), BatchOptions(max_batch=1, max_delay=0.0))
    infer = inference_pb2.ModelInferRequest(model_name="colours_image")
    infer.inputs.add(name="images", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(picture())

    async def work() -> None:
        server = grpc.aio.server()
        vision = VisionService([classifier], Limits(images=2))
        service.add_to_server(vision, server)
        inference_service.add_to_server(InferenceService(vision.repository, vision.intake), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ours, theirs = VisionStub(channel), GRPCInferenceServiceStub(channel)
            held: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(ours.Classify(pb.ClassifyRequest(image=picture()))),
                asyncio.ensure_future(theirs.ModelInfer(infer)),
            ]
            while classifier.waiting < 1 or not model.entered.is_set():
                await asyncio.sleep(0.005)
            for call in (ours.Classify(pb.ClassifyRequest(image=picture())), theirs.ModelInfer(infer)):
                with pytest.raises(grpc.aio.AioRpcError, match="2 images are in work already") as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            model.gate.set()
            await asyncio.gather(*held)
        await server.stop(0)
        vision.close()

    run(work)


def test_a_cancelled_call_is_not_run_and_frees_its_place() -> None:
    model = Gated()
    classifier = Classifier(colour_bundle(model=model), BatchOptions(max_batch=1, max_delay=0.0))

    async def work() -> None:
        async with serving(classifier, limits=Limits(images=3)) as stub:
            first = asyncio.ensure_future(stub.Classify(pb.ClassifyRequest(image=picture())))
            await asyncio.to_thread(model.entered.wait, WAIT)
            second = stub.Classify(pb.ClassifyRequest(image=picture()))
            stream = stub.ClassifyStream(iter([request("x")]))
            reading = asyncio.ensure_future(collect(stream))
            while classifier.waiting < 2:
                await asyncio.sleep(0.005)
            waiting = [entry.future for _, _, entry in classifier._batcher._heap]
            second.cancel()
            stream.cancel()
            while not all(future.cancelled() for future in waiting):
                await asyncio.sleep(0.005)
            await asyncio.gather(reading, return_exceptions=True)
            model.gate.set()
            await first
            await stub.Classify(pb.ClassifyRequest(image=picture()))
        assert model.batches == [1, 1], "the first and the last call; the cancelled images never ran"

    run(work)


def test_a_server_loads_folders_in_order(tmp_path: Any) -> None:
    from tests.test_vision_bundle import save
    from tests.vision_fixtures import TINY
    from vision_zoo.nasnet import NASNet

    for folder, name in (("one", "b"), ("two", "a")):
        save(tmp_path / folder / name, NASNet(replace(TINY)), name=name)
    vision = VisionService(Repository.load_all([tmp_path / "one", tmp_path / "two"]))
    assert vision.models == ("b", "a")
    vision.warm_up()
    vision.close()
    assert not any(thread.name.startswith("batcher") for thread in threading.enumerate())
    assert torch.is_grad_enabled()


def test_a_refused_image_leaves_nothing_behind(classifier: Classifier) -> None:
    """Without the garbage collector, which would come late: the error held the file, and what was decoded of it."""
    whole = encoded(noise(64, 64), kind="PNG")
    broken = whole[: len(whole) // 2]

    async def work() -> None:
        async with serving(classifier) as stub:
            with pytest.raises(grpc.aio.AioRpcError, match="broken PNG"):
                await stub.Classify(pb.ClassifyRequest(image=broken))

            async def requests() -> AsyncIterator[pb.ClassifyStreamRequest]:
                yield pb.ClassifyStreamRequest(request_id="1", request=pb.ClassifyRequest(image=broken))

            (answer,) = [each async for each in stub.ClassifyStream(requests())]
            assert "broken PNG" in answer.error.message
            await asyncio.sleep(0.1)
            assert not [each for each in gc.get_objects() if type(each) is ImageError]

    gc.collect()
    gc.disable()
    try:
        run(work)
    finally:
        gc.enable()
