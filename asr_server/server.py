"""The composition root: bundles, both services, health, reflection, one port, signals.

Order matters at both ends. The port is bound before models are read, so a wrong port fails at once; health says
SERVING only after every model has run once; on SIGTERM or SIGINT health turns first, then new calls are refused and
the ones in progress may end.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc.aio
import numpy as np
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import asr_server.bundle
import vision_zoo.bundle
import vision_zoo.service
from asr_server import service
from asr_server.catalogue import Catalogue
from asr_server.options import Running, ServerOptions
from asr_server.recognizer import Engine
from asr_server.service import SpeechService
from vision_zoo.service import VisionService

SHIPPED = (asr_server.bundle.SHIPPED, vision_zoo.bundle.SHIPPED)
SERVICES = (service.SERVICE_NAME, vision_zoo.service.SERVICE_NAME)


async def serve(options: ServerOptions, ready: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT. ValueError when a bundle or the port cannot be used."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(options) as server:
        ready(server)
        await stop.wait()


@asynccontextmanager
async def running(options: ServerOptions) -> AsyncIterator[Running]:
    """A server for as long as the context lasts: inside it is ready, on leaving it drains."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", options.message_bytes), ("grpc.so_reuseport", 0)]
    )
    address = _bind(server, options)
    folders = options.models or SHIPPED
    # One thread of torch per worker: streams run side by side, and small products gain nothing from more.
    with ThreadPoolExecutor(options.threads, "speech", torch.set_num_threads, (1,)) as executor:
        loop = asyncio.get_running_loop()
        catalogue = await loop.run_in_executor(executor, load_catalogue, folders)
        vision = VisionService(await asyncio.to_thread(vision_zoo.service.load_classifiers, folders))
        with closing(vision):
            models = Running(address, tuple(engine.name for engine in catalogue), vision.models)
            if not models.speech_models + models.vision_models:
                places = ", ".join(map(str, folders))
                raise ValueError(f"no bundles under {places}: a bundle is a folder in there with a bundle.json")
            service.add_to_server(SpeechService(catalogue, executor, options.limits), server)
            vision_zoo.service.add_to_server(vision, server)
            reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
            state = health.aio.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(state, server)
            await _set(state, serving=False)
            await server.start()
            try:
                for engine in catalogue:
                    await loop.run_in_executor(executor, _warm_up, engine)
                await asyncio.to_thread(vision.warm_up)
                await _set(state, serving=True)
                yield models
            finally:
                await state.enter_graceful_shutdown()
                await server.stop(options.drain_seconds)


def load_catalogue(folders: tuple[Path, ...]) -> Catalogue:
    """Every speech bundle under the folders, in their order."""
    found = [path for folder in folders for path in asr_server.bundle.find(folder)]
    return Catalogue(Engine(asr_server.bundle.load(path)) for path in found)


def _bind(server: grpc.aio.Server, options: ServerOptions) -> str:
    """Take the port; returns HOST:PORT."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        port = server.add_insecure_port(f"{host}:{options.port}")
    except RuntimeError:
        port = 0
    if port == 0:
        raise ValueError(f"{host}:{options.port} cannot be listened on; is the port in use? Choose another with --port")
    return f"{host}:{port}"


async def _set(state: health.aio.HealthServicer, serving: bool) -> None:
    """Health of the server as a whole ("") and of each service."""
    answer = health_pb2.HealthCheckResponse
    for name in ("", *SERVICES, service.GOOGLE_SERVICE_NAME):
        await state.set(name, answer.SERVING if serving else answer.NOT_SERVING)


def _warm_up(engine: Engine) -> None:
    """The first pass through a network is slow; nobody should have to wait for it."""
    engine.transcribe(np.zeros(engine.sample_rate, np.float32))
