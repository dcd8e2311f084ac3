"""Servers of the contracts beside our own over toy classifiers: in the test's event loop, or for clients elsewhere."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio

from tests.vision_fixtures import colour_bundle
from vision_zoo import inference_service, label_detection
from vision_zoo.classifier import Classifier
from vision_zoo.inference_service import InferenceService, Models
from vision_zoo.intake import Intake
from vision_zoo.label_detection import LabelDetection
from vision_zoo.repository import UnknownModelError
from vision_zoo.service import Limits

MESSAGE_BYTES = 32 << 20


@dataclass(frozen=True)
class State:
    name: str
    version: str
    state: str = "READY"
    reason: str = ""


class FixedModels:
    """Given classifiers; "unload" only hides them. A name may be there in several versions, the last is the default."""

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        self._classifiers, self._hidden = list(classifiers), set[str]()

    def find(self, name: str, version: str = "") -> Classifier:
        shown = [each for each in self._classifiers if each.bundle.name not in self._hidden]
        if not name and shown:
            return shown[0]
        for each in reversed(shown):
            if each.bundle.name == name and version in ("", each.bundle.version):
                return each
        raise UnknownModelError(f"choose from {[each.bundle.name for each in shown]}")

    def index(self) -> list[State]:
        bundles = [each.bundle for each in self._classifiers]
        states = {False: ("READY", ""), True: ("UNAVAILABLE", "unloaded")}
        return [State(each.name, each.version, *states[each.name in self._hidden]) for each in bundles]

    def load(self, name: str) -> None:
        self._hidden.discard(self._known(name))

    def unload(self, name: str) -> None:
        self._hidden.add(self._known(name))

    def _known(self, name: str) -> str:
        if name not in {each.bundle.name for each in self._classifiers}:
            raise UnknownModelError(f"no bundle is called {name!r}")
        return name


def colours(name: str = "colours", version: str = "3", **changes: Any) -> Classifier:
    """8 x 8 pixels, scaled to -1 to 1; the logits are ten times the means of the channels."""
    return Classifier(replace(colour_bundle(name), version=version, **changes))


@asynccontextmanager
async def serving(
    *classifiers: Classifier, limits: Limits | None = None, control: bool = True, models: Models | None = None
) -> AsyncIterator[tuple[str, InferenceService]]:
    """-> the address of a server with both services, ready; and the one of the two that can be told so."""
    limits = limits or Limits()
    models = models or FixedModels(classifiers)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES)])
    with ThreadPoolExecutor(limits.decoders) as decoders:
        intake = Intake(decoders, limits.images)
        service = InferenceService(models, intake, limits, "0.1", control)
        inference_service.add_to_server(service, server)
        label_detection.add_to_server(LabelDetection(models, intake, limits), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        service.ready = True
        try:
            yield f"127.0.0.1:{port}", service
        finally:
            await server.stop(0)
            for classifier in classifiers:
                classifier.close()


@contextmanager
def serving_elsewhere(*classifiers: Classifier) -> Iterator[str]:
    """-> the address of such a server in a thread with an event loop of its own."""
    addresses: queue.Queue[str] = queue.Queue()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        async with serving(*classifiers) as (address, _):
            addresses.put(address)
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        yield addresses.get(timeout=60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
