"""The network as it is served: in the precision that this machine computes fastest, and cut into chunks."""

from __future__ import annotations

from asr_server.model import Chunking, DeepSpeech

# A model without chunks of its own was trained on whole utterances; it streams with this much of the future.
DEFAULT_CHUNKING = Chunking(frames=50, right=50)


def for_streaming(model: DeepSpeech, precision: str) -> DeepSpeech:
    return model


def fastest(model: DeepSpeech) -> str:
    return "fp32"
