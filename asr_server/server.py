"""The composition root: bundles, the services of all contracts, health, reflection, one port, signals.

Order matters at both ends. The port is bound before models are read, so a wrong port fails at once; health says
SERVING only after every model has run once; on SIGTERM or SIGINT health turns first, then new calls are refused and
the ones in progress may end.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

import asr_server.bundle
import vision_zoo.bundle
import vision_zoo.service
from asr_server import operations_service, process, riva_service, service
from asr_server.auth_interceptor import AuthInterceptor
from asr_server.catalogue import Catalogue, Snapshot
from asr_server.gate import Gate
from asr_server.health_state import HealthState
from asr_server.long_running import LongRunning
from asr_server.malformed_interceptor import MalformedInterceptor
from asr_server.metrics import Counts, Metrics, Model
from asr_server.metrics_http import serve_metrics
from asr_server.operations_service import OperationsService
from asr_server.options import Running, ServerOptions
from asr_server.precision import fastest
from asr_server.recognizer import Engine
from asr_server.reloading import Reloader, watch
from asr_server.riva_service import RivaService
from asr_server.security_options import exposure_warning
from asr_server.service import SpeechService
from asr_server.session import Line
from asr_server.telemetry_interceptor import TelemetryInterceptor, method_names
from asr_server.token_file import TokenFile
from asr_server.tracing import make_tracer
from asr_server.transport import bind
from asr_server.wire import speech_pb2
from vision_zoo import batcher, inference_service, label_detection, registration, statistics
from vision_zoo.bundle import VisionBundle
from vision_zoo.classifier import Classifier
from vision_zoo.inference_service import InferenceService
from vision_zoo.label_detection import LabelDetection
from vision_zoo.neighbours import EmbeddingSets
from vision_zoo.registration import Registry
from vision_zoo.repository import Repository
from vision_zoo.service import VisionService
from vision_zoo.wire import vision_pb2

SHIPPED = (asr_server.bundle.SHIPPED, vision_zoo.bundle.SHIPPED)
OPERATION_SERVICES = (operations_service.SERVICE_NAME, operations_service.GOOGLE_SERVICE_NAME)
RIVA_SERVICES = (riva_service.SERVICE_NAME, riva_service.RIVA_SERVICE_NAME)
SPEECH_SERVICES = (service.SERVICE_NAME, service.GOOGLE_SERVICE_NAME, *RIVA_SERVICES)
BY_SPEECH = (*SPEECH_SERVICES, *OPERATION_SERVICES)  # what there is to do for these depends on speech models
ANNOTATION_SERVICES = (label_detection.SERVICE_NAME, label_detection.GOOGLE_SERVICE_NAME)
VISION_SERVICES = (vision_zoo.service.SERVICE_NAME, inference_service.SERVICE_NAME, *ANNOTATION_SERVICES)
HEALTHY = ("", *BY_SPEECH, *VISION_SERVICES)  # "" is the server as a whole
SERVICES = (  # for reflection
    service.SERVICE_NAME,
    operations_service.SERVICE_NAME,
    riva_service.SERVICE_NAME,
    vision_zoo.service.SERVICE_NAME,
    inference_service.SERVICE_NAME,
    label_detection.SERVICE_NAME,
)
VERSION = importlib.metadata.version("earsight")
# Calls that arrive while gRPC begins to stop end with CANCELLED now and then; until then our own answer is UNAVAILABLE.
_NOTICE_SECONDS = 0.3
EMBEDDINGS = "embeddings"  # the registry's folder of sets; a bundle's is NAME@VERSION
CODEC_THREADS = 2  # they decode compressed audio, which releases the interpreter's lock

logger = logging.getLogger(__name__)


async def serve(options: ServerOptions, ready: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP looks for models. ValueError when a bundle or the port cannot be used."""
    process.prepare()
    begun, stop, wake = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def end(number: int) -> None:
        if not begun.is_set():  # health says that nobody is served yet; threads that load cannot be stopped
            logger.warning("stopped while starting")
            logging.shutdown()
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, wake.set)
    async with running(options, wake) as server:
        begun.set()
        ready(server)
        await stop.wait()


@asynccontextmanager
async def running(options: ServerOptions, wake: asyncio.Event | None = None) -> AsyncIterator[Running]:
    """A server for as long as the context lasts: inside it is ready, on leaving it drains. `wake`: look for models."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        tracer = make_tracer(options.telemetry.trace_endpoint)
        stack.push_async_callback(asyncio.to_thread, tracer.close)
        server = _server(options, metrics, TelemetryInterceptor(metrics, tracer, method_names(_methods())))
        address = bind(server, options.host, options.port, options.security)
        if warning := exposure_warning(options.host, options.security):
            logger.warning(warning)
        telemetry, metrics_port = options.telemetry, None
        if telemetry.metrics_port is not None:
            endpoint = serve_metrics(metrics, telemetry.metrics_host, telemetry.metrics_port)
            metrics_port = stack.enter_context(endpoint)
        folders = options.models or SHIPPED
        if options.registry is not None:
            registration.check_folder(options.registry)
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        state = HealthState()
        catalogue = Catalogue(default=options.default_model or asr_server.bundle.SHIPPED_DEFAULT)

        def changed(now: Snapshot) -> None:
            """Called in the thread that looks for models."""
            metrics.models(_loaded(now))
            if ready.is_set():
                asyncio.run_coroutine_threadsafe(_set(state, BY_SPEECH, serving=bool(now.engines)), loop)

        reloader = Reloader(
            catalogue,
            folders,
            options.language_models,
            lambda bundle: make_engine(bundle, options.precision, options.threads),
            _warm_up,
            changed,
            metrics.reload,
        )
        await asyncio.to_thread(reloader.begin)
        _check_default(options.default_model, catalogue)
        vision = await asyncio.to_thread(_vision, folders, options)
        stack.enter_context(closing(vision))
        metrics.read_at_scrapes(statistics.DESCRIPTIONS, lambda: _counts(vision.repository))
        models = Running(address, tuple(engine.name for engine in catalogue), vision.models, metrics_port)
        if not models.speech_models + models.vision_models and options.registry is None:
            places = ", ".join(map(str, folders))
            raise ValueError(f"no bundles under {places}: a bundle is a folder in there with a bundle.json")
        executor = stack.enter_context(ThreadPoolExecutor(CODEC_THREADS, "codec"))
        line = Line(executor, options.batching, metrics)
        stack.callback(line.close)
        metrics.queue_of(lambda: line.scheduler.waiting)
        gate = Gate(line, options.limits, metrics)
        long_running = LongRunning(gate, options.operations, options.audio_folder)
        stack.push_async_callback(long_running.close)
        service.add_to_server(SpeechService(catalogue, gate, long_running), server)
        operations_service.add_to_server(OperationsService(long_running), server)
        riva_service.add_to_server(RivaService(catalogue, gate), server)
        vision_zoo.service.add_to_server(vision, server)
        inference = InferenceService(vision.repository, vision.intake, version=VERSION, control=options.model_control)
        inference_service.add_to_server(inference, server)
        label_detection.add_to_server(LabelDetection(vision.repository, vision.intake), server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        health_pb2_grpc.add_HealthServicer_to_server(state, server)
        await _set(state, HEALTHY, serving=False)
        await server.start()
        try:
            # Vision first: it takes torch's threads as they are, the engines' workers set them to one each.
            await asyncio.to_thread(vision.warm_up)
            for engine in catalogue:
                await asyncio.to_thread(_warm_up, engine)
            await _set(state, ("",), serving=True)
            await _set(state, BY_SPEECH, serving=bool(catalogue.snapshot.engines))
            may_come = options.registry is not None or options.model_control
            await _set(state, VISION_SERVICES, serving=may_come or bool(models.vision_models))
            inference.ready = True
            ready.set()
            watching = asyncio.create_task(watch(reloader, options.reload_seconds, wake or asyncio.Event()))
            stack.push_async_callback(_cancelled, watching)
            yield models
        finally:
            inference.ready = False
            await state.enter_graceful_shutdown()
            gate.draining = True
            await asyncio.sleep(_NOTICE_SECONDS)
            state.end_watches()
            await server.stop(options.drain_seconds)


def load_catalogue(folders: tuple[Path, ...], precision: str = "fp32", threads: int | None = None) -> Catalogue:
    """Every speech bundle under the folders, in their order."""
    found = [path for folder in folders for path in asr_server.bundle.find(folder)]
    engines = (make_engine(asr_server.bundle.load(path), precision, threads) for path in found)
    return Catalogue(engines, default=asr_server.bundle.SHIPPED_DEFAULT)


def _vision(folders: tuple[Path, ...], options: ServerOptions) -> VisionService:
    """Where options.registry is a folder, clients may register what is served then, and after a restart. ValueError."""
    given, kept = options.vision_limits, options.registry
    limits = vision_zoo.service.Limits(images=given.images, decoders=given.decoders)

    def make(bundle: VisionBundle) -> Classifier:
        """With room for all that is let in and for the batches that warm it up."""
        size = min(given.batch, given.images)  # a larger one could not be let in
        batching = batcher.BatchOptions(size, given.delay_seconds, capacity=given.images + size)
        return Classifier(bundle, batching, precision=options.vision_precision)

    if kept is None:
        return VisionService(Repository.load_all(folders, make), limits)
    is_among_them = any(folder.resolve() == kept.resolve() for folder in folders)
    repository = Repository.load_all(folders if is_among_them else (*folders, kept), make)
    embeddings = kept / EMBEDDINGS
    embeddings.mkdir(exist_ok=True)
    return VisionService(repository, limits, Registry(kept, repository), EmbeddingSets(embeddings))


def _counts(repository: Repository) -> list[Counts]:
    """For the metrics."""
    return [
        Counts(each.bundle.name, each.bundle.version, each.statistics.totals.as_metrics(each.waiting))
        for each in repository.classifiers
    ]


def _check_default(name: str | None, catalogue: Catalogue) -> None:
    loaded = catalogue.snapshot.engines
    if name is not None and name not in loaded:
        raise ValueError(f"default model '{name}' is not loaded. Select one of {{{', '.join(loaded)}}}")


def make_engine(bundle: asr_server.bundle.SpeechBundle, precision: str, threads: int | None) -> Engine:
    """precision "auto" is what this machine computes fastest."""
    return Engine(bundle, fastest(bundle.model) if precision == "auto" else precision, threads)


def _server(options: ServerOptions, metrics: Metrics, telemetry: TelemetryInterceptor) -> grpc.aio.Server:
    tokens = TokenFile(options.security.tokens) if options.security.tokens else None
    # in this order: refusals are counted, and nobody's messages are looked at who may not call
    interceptors = [telemetry, AuthInterceptor(tokens, SPEECH_SERVICES, metrics.rejected), MalformedInterceptor()]
    settings = [
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.so_reuseport", 0),
        *_keepalive(options.keepalive_seconds),
    ]
    return grpc.aio.server(interceptors=interceptors, options=settings)


def _keepalive(seconds: float) -> list[tuple[str, int]]:
    """A connection whose client has gone without a word is found out after 4/3 of the seconds."""
    return [
        ("grpc.keepalive_time_ms", round(1000 * seconds)),
        ("grpc.keepalive_timeout_ms", round(1000 * seconds / 3)),
        ("grpc.http2.ping_timeout_ms", round(1000 * seconds / 3)),  # also for the pings that measure a connection
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]


def _methods() -> Mapping[str, Any]:
    """Service name -> descriptor, of everything that is served."""
    speech = speech_pb2.DESCRIPTOR.services_by_name["Speech"]
    return {
        **dict.fromkeys((service.SERVICE_NAME, service.GOOGLE_SERVICE_NAME), speech),
        **dict.fromkeys(OPERATION_SERVICES, operations_service.DESCRIPTOR),
        **dict.fromkeys(RIVA_SERVICES, riva_service.DESCRIPTOR),
        inference_service.SERVICE_NAME: inference_service.DESCRIPTOR,
        **dict.fromkeys(ANNOTATION_SERVICES, label_detection.DESCRIPTOR),
        vision_zoo.service.SERVICE_NAME: vision_pb2.DESCRIPTOR.services_by_name["Vision"],
        health.SERVICE_NAME: health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection.SERVICE_NAME: reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    }


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _loaded(now: Snapshot) -> list[Model]:
    """For the metrics."""
    speech = [Model(engine.name, engine.bundle.version, "speech") for engine in now.engines.values()]
    return [*speech, *(Model(name, "", "language_model") for name in now.language_models)]


async def _set(state: HealthState, services: Iterable[str], serving: bool) -> None:
    answer = health_pb2.HealthCheckResponse
    for name in services:
        await state.set(name, answer.SERVING if serving else answer.NOT_SERVING)


def _warm_up(engine: Engine) -> None:
    """The first pass through a network is slow; nobody should have to wait for it."""
    engine.transcribe(np.zeros(engine.sample_rate, np.float32))
