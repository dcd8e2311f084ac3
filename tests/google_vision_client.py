"""google-cloud-vision as its users write it, in a process of its own.

    python tests/google_vision_client.py HOST:PORT MODEL FILE...

Prints what came back as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
from google.cloud import vision
from google.cloud.vision_v1.services.image_annotator.transports import ImageAnnotatorGrpcTransport


def main(address: str, model: str, *paths: str) -> None:
    client = vision.ImageAnnotatorClient(transport=ImageAnnotatorGrpcTransport(channel=grpc.insecure_channel(address)))
    images = []
    for path in paths:
        with open(path, "rb") as file:
            images.append(vision.Image(content=file.read()))
    labels = vision.Feature(type_=vision.Feature.Type.LABEL_DETECTION, max_results=1, model=model)
    requests = [vision.AnnotateImageRequest(image=image, features=[labels]) for image in images]
    methods: Any = client  # label_detection and its like are added while the module is imported
    elsewhere = vision.Image(source=vision.ImageSource(image_uri="gs://bucket/cat.jpg"))
    answers = {
        "label_detection": told(methods.label_detection(image=images[0])),
        "max_results": told(methods.label_detection(image=images[0], max_results=2)),
        "batch": [told(each) for each in client.batch_annotate_images(requests=requests).responses],
        "broken": told(methods.label_detection(image=vision.Image(content=b"hello"))),
        "elsewhere": told(methods.label_detection(image=elsewhere)),
        "faces": told(methods.face_detection(image=images[0])),
    }
    print(json.dumps(answers))


def told(response: Any) -> Any:
    if response.error.message:
        return f"{response.error.code}: {response.error.message}"
    return [[each.description, each.score] for each in response.label_annotations]


if __name__ == "__main__":
    main(*sys.argv[1:])
