"""Google's Vision API, its label detection, on the same classifiers and port: an adapter as thin as its contract.

Errors belong to single images: each has a status of its own in the response, and the call itself succeeds.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from vision_zoo.inference_service import Models, status_of, unary
from vision_zoo.intake import Intake
from vision_zoo.service import Limits
from vision_zoo.wire import image_annotator_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["ImageAnnotator"]
SERVICE_NAME = DESCRIPTOR.full_name
GOOGLE_SERVICE_NAME = "google.cloud.vision.v1.ImageAnnotator"  # the same numbers on the wire, see image_annotator.proto
MAX_IMAGES = 16  # of one request, as at Google
DEFAULT_RESULTS = 10
_DEFAULT_MODELS = ("", "builtin/stable", "builtin/latest")


class LabelDetection:
    """`ImageAnnotator` of image_annotator.proto."""

    def __init__(self, models: Models, intake: Intake, limits: Limits | None = None) -> None:
        self._models, self._intake, self._limits = models, intake, limits or Limits()

    async def batch_annotate_images(self, request: pb.BatchAnnotateImagesRequest) -> pb.BatchAnnotateImagesResponse:
        count = len(request.requests)
        if not 1 <= count <= MAX_IMAGES:
            raise ValueError(f"{count} images in one request; send 1 to {MAX_IMAGES}")
        async with self._intake.places(count):
            responses = await asyncio.gather(*map(self._annotate, request.requests))
        return pb.BatchAnnotateImagesResponse(responses=responses)

    async def _annotate(self, request: pb.AnnotateImageRequest) -> pb.AnnotateImageResponse:
        try:
            feature = read_feature(request)
            content = read_content(request, self._limits.image_bytes)
            classifier = self._models.find("" if feature.model in _DEFAULT_MODELS else feature.model)
            pixels = await self._intake.pixels(classifier, [content])
            probabilities = await self._intake.probabilities(classifier, pixels)
            predictions = classifier.predictions(probabilities[0], feature.max_results or DEFAULT_RESULTS)
        except Exception as error:
            code, text = status_of(error)
            number: int = code.value[0]
            return pb.AnnotateImageResponse(error=pb.Status(code=number, message=text))
        return pb.AnnotateImageResponse(
            label_annotations=[
                pb.EntityAnnotation(description=each.label, score=each.probability, topicality=each.probability)
                for each in predictions
            ]
        )


def read_feature(request: pb.AnnotateImageRequest) -> pb.Feature:
    """The one feature that is served. Raises ValueError."""
    wrong = [_type_name(feature.type) for feature in request.features if feature.type != pb.Feature.LABEL_DETECTION]
    if wrong or len(request.features) != 1:
        raise ValueError(f"features {wrong or len(request.features)}; this server has one, LABEL_DETECTION, once")
    feature = request.features[0]
    if feature.max_results < 0:
        raise ValueError(f"max_results {feature.max_results} must be at least 1, or 0 for {DEFAULT_RESULTS}")
    return feature


def read_content(request: pb.AnnotateImageRequest, byte_limit: int) -> bytes:
    """The bytes of the file. Raises ValueError."""
    image = request.image
    if image.HasField("source"):
        raise ValueError("image.source: this server fetches no images; send image.content")
    if len(image.content) > byte_limit:
        raise ValueError(f"image of {len(image.content)} bytes; the limit is {byte_limit} bytes")
    return image.content


def _type_name(number: int) -> str:
    known = pb.Feature.DESCRIPTOR.enum_types_by_name["Type"].values_by_number
    return str(known[number].name) if number in known else str(number)


def add_to_server(service: LabelDetection, server: grpc.aio.Server) -> None:
    """Register one servicer under our name and under Google's."""
    handlers = {"BatchAnnotateImages": unary(service.batch_annotate_images, pb.BatchAnnotateImagesRequest)}
    names = (SERVICE_NAME, GOOGLE_SERVICE_NAME)
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(name, handlers) for name in names))
