"""The caller in benchmarks.vision: images over gRPC, from a process of its own.

python -m benchmarks.vision_client --server 127.0.0.1:50051 --images DIR --model NAME

A line of JSON on standard input, {"images": [0, 1]}, names files of the sorted folder; they are sent at once, a call
each. The reply has the seconds until the last answer, and the most probable label of each.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from vision_zoo.wire import vision_pb2 as pb
from vision_zoo.wire.vision_pb2_grpc import VisionStub

PATIENCE = 600.0  # seconds for one turn


async def converse(server: str, images: Sequence[bytes], model: str) -> None:
    """Answers the lines of standard input until it ends."""
    async with grpc.aio.insecure_channel(server) as channel:
        stub = VisionStub(channel)
        requests = [pb.ClassifyRequest(image=image, model=model, top_k=1) for image in images]
        while line := await asyncio.to_thread(sys.stdin.readline):
            chosen = [requests[number] for number in json.loads(line)["images"]]
            begin = time.perf_counter()
            answers = await asyncio.gather(*(stub.Classify(request, timeout=PATIENCE) for request in chosen))
            seconds = time.perf_counter() - begin
            labels = [answer.predictions[0].index for answer in answers]
            print(json.dumps({"seconds": seconds, "labels": labels}), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision_client")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", required=True, metavar="NAME")
    args = parser.parse_args(arguments)
    images = [path.read_bytes() for path in sorted(args.images.iterdir())]
    asyncio.run(converse(args.server, images, args.model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
