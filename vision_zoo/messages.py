"""Protocol messages <-> what the classifier speaks. No network in here.

Requests become frozen options, or a ValueError whose text is what the client gets to read with INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vision_zoo.attribution import Attribution, overlay
from vision_zoo.batcher import Urgency
from vision_zoo.bundle import VisionBundle
from vision_zoo.classifier import DEFAULT_TOP_K, Classifier, Prediction
from vision_zoo.neighbours import EmbeddingSet, Neighbour
from vision_zoo.registration import Announced
from vision_zoo.wire import vision_pb2 as pb

PRIORITIES = 100  # the largest one, and below zero the smallest


@dataclass(frozen=True)
class ClassifyOptions:
    """What a request says beside the image. index: of the label to explain; None: the most probable one."""

    top_k: int
    urgency: Urgency
    abstain_below: float
    explain: bool = False
    index: int | None = None
    overlay: bool = False
    values: bool = False


def classify_options(request: pb.ClassifyRequest, deadline: float | None) -> ClassifyOptions:
    """Raises ValueError."""
    top_k = request.top_k or DEFAULT_TOP_K
    if top_k < 1:
        raise ValueError(f"top_k {top_k} must be at least 1")
    if not 0 <= request.abstain_below <= 1:
        raise ValueError(f"abstain_below {request.abstain_below:g} must be 0 to 1")
    wish = request.explanation
    return ClassifyOptions(
        top_k=top_k,
        urgency=urgency(request.priority, deadline),
        abstain_below=request.abstain_below,
        explain=request.HasField("explanation"),
        index=wish.index if wish.HasField("index") else None,
        overlay=wish.overlay or not wish.values,
        values=wish.values,
    )


def urgency(priority: int, deadline: float | None) -> Urgency:
    if abs(priority) > PRIORITIES:
        raise ValueError(f"priority {priority} must be -{PRIORITIES} to {PRIORITIES}")
    return Urgency(priority, deadline)


def announced(header: pb.RegisterHeader) -> list[Announced]:
    return [Announced(file.name, file.bytes, file.sha256) for file in header.files]


def vector(message: pb.Embedding) -> Tensor:
    """-> (D,)."""
    return torch.tensor(list(message.values), dtype=torch.float32)


def response(of: VisionBundle, predictions: Sequence[Prediction], abstain_below: float = 0.0) -> pb.ClassifyResponse:
    return pb.ClassifyResponse(
        predictions=[pb.Prediction(index=p.index, label=p.label, probability=p.probability) for p in predictions],
        abstained=predictions[0].probability < abstain_below,
        **_origin(of),
    )


def explanation(of: VisionBundle, pixels: Tensor, found: Attribution, options: ClassifyOptions) -> pb.Explanation:
    """pixels: uint8 (3, S, S), what the network saw."""
    message = pb.Explanation(index=found.index, label=of.labels[found.index], method=found.method)
    if options.overlay:
        message.overlay = overlay(pixels, found.map)
    if options.values:
        message.height, message.width = found.map.shape
        message.values.extend(found.map.flatten().tolist())
    return message


def embed_response(of: VisionBundle, embedding: Tensor) -> pb.EmbedResponse:
    return pb.EmbedResponse(embedding=embedding.tolist(), **_origin(of))


def search_response(of: VisionBundle, neighbours: Iterable[Neighbour]) -> pb.SearchResponse:
    found = [pb.Neighbour(id=each.id, label=each.label, similarity=each.similarity) for each in neighbours]
    return pb.SearchResponse(neighbours=found, **_origin(of))


def embedding_set(of: EmbeddingSet) -> pb.EmbeddingSet:
    members, size = of.vectors.shape
    return pb.EmbeddingSet(name=of.name, members=members, size=size, model=of.model, model_version=of.version)


class Named(Protocol):
    """What knows the aliases of models."""

    def aliases(self, name: str, version: str) -> list[str]: ...


def model(classifier: Classifier, names: Named) -> pb.Model:
    of = classifier.bundle
    return pb.Model(
        name=of.name,
        version=of.version,
        labels=of.labels,
        input_size=of.preprocessing.size,
        parameters=of.parameters,
        weights_sha256=of.weights_sha256,
        preprocessing_sha256=of.preprocessing.identity,
        aliases=names.aliases(of.name, of.version),
    )


def _origin(of: VisionBundle) -> dict[str, Any]:
    """What every answer says about the model that gave it."""
    return {
        "model": of.name,
        "model_version": of.version,
        "weights_sha256": of.weights_sha256,
        "preprocessing_sha256": of.preprocessing.identity,
    }
