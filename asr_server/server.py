"""The composition root: bundles, the services of all contracts, health, reflection, one port, signals.

Order matters at both ends. The port is bound before models are read, so a wrong port fails at once; health says
SERVING only after every model has run once; on SIGTERM or SIGINT health turns first, then new calls are refused and
the ones in progress may end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

import asr_server.bundle
import vision_zoo.bundle
import vision_zoo.service
from asr_server import service
from asr_server.auth_interceptor import AuthInterceptor
from asr_server.catalogue import Catalogue
from asr_server.gate import Gate
from asr_server.metrics import Metrics, Model
from asr_server.metrics_http import serve_metrics
from asr_server.options import Running, ServerOptions
from asr_server.precision import fastest
from asr_server.recognizer import Engine
from asr_server.security_options import exposure_warning
from asr_server.service import SpeechService
from asr_server.session import Line
from asr_server.telemetry_interceptor import TelemetryInterceptor, method_names
from asr_server.token_file import TokenFile
from asr_server.tracing import make_tracer
from asr_server.transport import bind
from asr_server.wire import speech_pb2
from vision_zoo.service import VisionService
from vision_zoo.wire import vision_pb2

SHIPPED = (asr_server.bundle.SHIPPED, vision_zoo.bundle.SHIPPED)
SPEECH_SERVICES = (service.SERVICE_NAME, service.GOOGLE_SERVICE_NAME)
SERVICES = (service.SERVICE_NAME, vision_zoo.service.SERVICE_NAME)
CODEC_THREADS = 2  # they decode compressed audio, which releases the interpreter's lock

# A connection whose client has gone without a word is found out after `time` + `timeout`.
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)

logger = logging.getLogger(__name__)


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
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        tracer = make_tracer(options.telemetry.trace_endpoint)
        stack.push_async_callback(asyncio.to_thread, tracer.close)
        server = _server(options, TelemetryInterceptor(metrics, tracer, method_names(_methods())))
        address = bind(server, options.host, options.port, options.security)
        if warning := exposure_warning(options.host, options.security):
            logger.warning(warning)
        telemetry, metrics_port = options.telemetry, None
        if telemetry.metrics_port is not None:
            endpoint = serve_metrics(metrics, telemetry.metrics_host, telemetry.metrics_port)
            metrics_port = stack.enter_context(endpoint)
        folders = options.models or SHIPPED
        catalogue = await asyncio.to_thread(load_catalogue, folders, options.precision, options.threads)
        vision = VisionService(await asyncio.to_thread(vision_zoo.service.load_classifiers, folders))
        stack.enter_context(closing(vision))
        models = Running(address, tuple(engine.name for engine in catalogue), vision.models, metrics_port)
        if not models.speech_models + models.vision_models:
            places = ", ".join(map(str, folders))
            raise ValueError(f"no bundles under {places}: a bundle is a folder in there with a bundle.json")
        metrics.models([Model(engine.name, engine.bundle.version, "speech") for engine in catalogue])
        executor = stack.enter_context(ThreadPoolExecutor(CODEC_THREADS, "codec"))
        line = Line(executor, options.batching, metrics)
        stack.callback(line.close)
        gate = Gate(line, options.limits, metrics)
        service.add_to_server(SpeechService(catalogue, gate), server)
        vision_zoo.service.add_to_server(vision, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        state = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(state, server)
        await _set(state, serving=False)
        await server.start()
        try:
            # Vision first: it takes torch's threads as they are, the engines' workers set them to one each.
            await asyncio.to_thread(vision.warm_up)
            for engine in catalogue:
                await asyncio.to_thread(_warm_up, engine)
            await _set(state, serving=True)
            yield models
        finally:
            await state.enter_graceful_shutdown()
            await server.stop(options.drain_seconds)


def load_catalogue(folders: tuple[Path, ...], precision: str = "fp32", threads: int | None = None) -> Catalogue:
    """Every speech bundle under the folders, in their order."""
    found = [path for folder in folders for path in asr_server.bundle.find(folder)]
    return Catalogue(make_engine(asr_server.bundle.load(path), precision, threads) for path in found)


def make_engine(bundle: asr_server.bundle.SpeechBundle, precision: str, threads: int | None) -> Engine:
    """precision "auto" is what this machine computes fastest."""
    return Engine(bundle, fastest(bundle.model) if precision == "auto" else precision, threads)


def _server(options: ServerOptions, telemetry: TelemetryInterceptor) -> grpc.aio.Server:
    tokens = TokenFile(options.security.tokens) if options.security.tokens else None
    interceptors = [telemetry, AuthInterceptor(tokens, SPEECH_SERVICES)]  # in this order, so that refusals are counted
    settings = [
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.so_reuseport", 0),
        *_KEEPALIVE,
    ]
    return grpc.aio.server(interceptors=interceptors, options=settings)


def _methods() -> Mapping[str, Any]:
    """Service name -> descriptor, of everything that is served."""
    speech = speech_pb2.DESCRIPTOR.services_by_name["Speech"]
    return {
        **dict.fromkeys(SPEECH_SERVICES, speech),
        vision_zoo.service.SERVICE_NAME: vision_pb2.DESCRIPTOR.services_by_name["Vision"],
        health.SERVICE_NAME: health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection.SERVICE_NAME: reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    }


async def _set(state: health.aio.HealthServicer, serving: bool) -> None:
    """Health of the server as a whole ("") and of each service."""
    answer = health_pb2.HealthCheckResponse
    for name in ("", *SPEECH_SERVICES, vision_zoo.service.SERVICE_NAME):
        await state.set(name, answer.SERVING if serving else answer.NOT_SERVING)


def _warm_up(engine: Engine) -> None:
    """The first pass through a network is slow; nobody should have to wait for it."""
    engine.transcribe(np.zeros(engine.sample_rate, np.float32))
