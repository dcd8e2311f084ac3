"""The adapter for Google's Vision API on a loopback port, under both of its names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.inference_fixtures import colours, serving
from tests.vision_fixtures import picture
from vision_zoo.label_detection import GOOGLE_SERVICE_NAME, SERVICE_NAME, read_content, read_feature
from vision_zoo.wire import image_annotator_pb2 as pb

LABELS = pb.Feature(type=pb.Feature.LABEL_DETECTION)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def asked(content: bytes, feature: pb.Feature = LABELS) -> pb.AnnotateImageRequest:
    return pb.AnnotateImageRequest(image=pb.Image(content=content), features=[feature])


def method(channel: grpc.aio.Channel, service: str) -> Any:
    return channel.unary_unary(
        f"/{service}/BatchAnnotateImages",
        request_serializer=pb.BatchAnnotateImagesRequest.SerializeToString,
        response_deserializer=pb.BatchAnnotateImagesResponse.FromString,
    )


@pytest.mark.parametrize("service", [SERVICE_NAME, GOOGLE_SERVICE_NAME])
def test_each_image_has_its_labels_or_its_error(service: str) -> None:
    two = pb.Feature(type=pb.Feature.LABEL_DETECTION, max_results=2, model="colours")
    requests = [
        asked(picture("blue"), two),
        asked(b"hello"),
        asked(picture("green"), pb.Feature(type=pb.Feature.LABEL_DETECTION, model="cats")),
        asked(picture("green"), pb.Feature(type=pb.Feature.LABEL_DETECTION, model="builtin/stable")),
    ]

    async def work() -> None:
        async with serving(colours()) as (address, _), grpc.aio.insecure_channel(address) as channel:
            answer = await method(channel, service)(pb.BatchAnnotateImagesRequest(requests=requests))
        blue, broken, unknown, green = answer.responses
        assert len(blue.label_annotations) == 2 and len(green.label_annotations) == 3
        assert [each[0].description for each in (blue.label_annotations, green.label_annotations)] == ["blue", "green"]
        assert sum(each.score for each in green.label_annotations) == pytest.approx(1)
        assert green.label_annotations[0].topicality == green.label_annotations[0].score
        assert not blue.HasField("error") and not broken.label_annotations
        assert broken.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and "not an image" in broken.error.message
        assert unknown.error.code == grpc.StatusCode.NOT_FOUND.value[0]

    run(work)


def test_a_request_has_1_to_16_images() -> None:
    async def work() -> None:
        async with serving(colours()) as (address, _), grpc.aio.insecure_channel(address) as channel:
            call = method(channel, SERVICE_NAME)
            full = await call(pb.BatchAnnotateImagesRequest(requests=[asked(picture())] * 16))
            assert {each.label_annotations[0].description for each in full.responses} == {"red"}
            for count in (0, 17):
                with pytest.raises(grpc.aio.AioRpcError, match=f"{count} images in one request") as caught:
                    await call(pb.BatchAnnotateImagesRequest(requests=[asked(picture())] * count))
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(work)


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ([], "features 0; this server has one, LABEL_DETECTION, once"),
        ([LABELS, LABELS], "features 2; this server has one"),
        ([LABELS, pb.Feature(type=pb.Feature.FACE_DETECTION)], r"features \['FACE_DETECTION'\]; this"),
        ([pb.Feature(type=pb.Feature.Type.ValueType(77))], r"features \['77'\]"),
        ([pb.Feature(type=pb.Feature.LABEL_DETECTION, max_results=-1)], "max_results -1 must be at least 1"),
    ],
)
def test_refused_features(features: list[pb.Feature], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_feature(pb.AnnotateImageRequest(features=features))


def test_refused_images() -> None:
    source = pb.Image(source=pb.ImageSource(image_uri="https://example.org/cat.jpg"))
    with pytest.raises(ValueError, match="this server fetches no images"):
        read_content(pb.AnnotateImageRequest(image=source), 10)
    with pytest.raises(ValueError, match="image of 11 bytes; the limit is 10 bytes"):
        read_content(asked(b"b" * 11), 10)
    assert read_content(asked(b"b" * 10), 10) == b"b" * 10
