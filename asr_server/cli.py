"""`asr-server serve` and `asr-server transcribe`: arguments, the terminal, and errors in one line."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from asr_server import client, connection, tokens_cli
from asr_server.client import ClientError, ClientOptions, Heard
from asr_server.options import PRECISIONS, Limits, Running, ServerOptions, Telemetry, VisionLimits
from asr_server.pcm import Samples
from asr_server.security_options import SecurityOptions
from asr_server.transcripts import FORMATS, Segment, Transcript, render

# A client of a server somewhere else needs no deep learning framework: what does is imported where it is used.

Hear = Callable[[Iterable[Samples]], Iterator[Heard]]

_SERVE = """\
Serve speech recognition and image classification on one port, with health and reflection.

The models are bundles: folders that describe themselves. Requests choose one by name, or leave that to the server
(--default-model). Stop with Ctrl-C or SIGTERM: calls in progress may end.
"""
_SERVE_EXAMPLES = """\
examples:
  asr-server serve                                     the shipped models on 127.0.0.1:50051
  asr-server serve --host 0.0.0.0 --models /srv/models --certificate server.pem --key server.key --tokens tokens.json
"""
_TRANSCRIBE = """\
Transcribe files or a microphone through a running server, or without one (--local).

Interim text is shown in place while it changes, on a terminal; finished utterances stay. Any format that libsndfile
reads can be sent: WAV, FLAC, Ogg, MP3, AIFF and more.
"""
_TRANSCRIBE_EXAMPLES = """\
examples:
  asr-server transcribe talk.wav                       text on standard output
  asr-server transcribe --format srt --output subtitles/ *.flac
  asr-server transcribe --realtime --server 10.0.0.5:50051 talk.wav
  asr-server transcribe --local talk.wav               no server needed
  asr-server transcribe --microphone                   until Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where something could not be done, 2 for wrong arguments."""
    args = parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()  # the interpreter would complain once more on its way out
        return 0
    except (ClientError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="asr-server", description="Streaming speech recognition: the server and its client."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    text = argparse.RawDescriptionHelpFormatter
    _add_serve(
        commands.add_parser(
            "serve", help="start the server", description=_SERVE, epilog=_SERVE_EXAMPLES, formatter_class=text
        )
    )
    _add_transcribe(
        commands.add_parser(
            "transcribe",
            help="turn audio into text",
            description=_TRANSCRIBE,
            epilog=_TRANSCRIBE_EXAMPLES,
            formatter_class=text,
        )
    )
    tokens_cli.add_commands(commands)
    return top


def _add_serve(command: argparse.ArgumentParser) -> None:
    usual, limits, vision = ServerOptions(), Limits(), VisionLimits()
    command.set_defaults(run=_serve)
    command.add_argument("--host", default=usual.host, help="address to listen on (default: %(default)s)")
    command.add_argument("--port", type=int, default=usual.port, help="0 takes any free one (default: %(default)s)")
    command.add_argument(
        "--models",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with speech and vision bundles; may be given again (default: the shipped models)",
    )
    command.add_argument(
        "--registry",
        type=Path,
        metavar="DIR",
        help="clients may register vision bundles, aliases and sets of embeddings, which are kept in this folder and "
        "served again after a restart (default: they may not)",
    )
    command.add_argument(
        "--allow-model-control",
        action="store_true",
        help="clients may load and unload the vision models of the folders (default: they may not)",
    )
    command.add_argument(
        "--default-model",
        metavar="NAME",
        help="speech model for requests that name none (default: deepspeech-en where it is loaded, else the first)",
    )
    command.add_argument(
        "--language-models",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with KenLM files that calls can choose by name; may be given again",
    )
    command.add_argument(
        "--audio-folder",
        type=Path,
        metavar="DIR",
        help="recordings that LongRunningRecognize may read, as file:///NAME (default: none)",
    )
    command.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default=usual.precision,
        help="of the network's products; auto: what this machine computes fastest (default: %(default)s)",
    )
    command.add_argument(
        "--vision-precision",
        default=usual.vision_precision,
        metavar="PRECISION",
        help="of vision networks: auto, bf16, fp32, or eager, which is not compiled (default: %(default)s)",
    )
    for name, kind, default, meaning in (
        ("queue", int, vision.images, "images accepted and not yet answered; more single ones get RESOURCE_EXHAUSTED"),
        ("decoders", int, vision.decoders, "images decoded at once, each in up to 880 MB"),
        ("batch", int, vision.batch, "images that share a run of their network at most"),
        ("delay", float, vision.delay_seconds, "seconds that an image may wait for company; 0: never"),
    ):
        command.add_argument(
            f"--vision-{name}", type=kind, default=default, metavar="N", help=f"{meaning} (default: %(default)s)"
        )
    command.add_argument(
        "--threads", type=int, default=usual.threads, help="of the network and the searches (default: %(default)s)"
    )
    command.add_argument(
        "--max-calls",
        type=int,
        default=limits.calls,
        help="speech calls at once; more get RESOURCE_EXHAUSTED (default: %(default)s)",
    )
    command.add_argument(
        "--max-message-bytes",
        type=int,
        default=usual.message_bytes,
        metavar="N",
        help="largest message taken in (default: %(default)s)",
    )
    command.add_argument(
        "--max-lag-seconds",
        type=float,
        default=limits.lag_seconds,
        metavar="S",
        help="refuse new calls while the engine is so late (default: %(default)g)",
    )
    command.add_argument(
        "--max-ahead-seconds",
        type=float,
        default=limits.ahead_seconds,
        metavar="S",
        help="read a call no further while so much of its audio waits (default: %(default)g)",
    )
    command.add_argument(
        "--max-stream-seconds",
        type=float,
        default=limits.stream_seconds,
        metavar="S",
        help="longest stream of audio (default: %(default)g)",
    )
    command.add_argument(
        "--idle-seconds",
        type=float,
        default=limits.idle_seconds,
        metavar="S",
        help="end a stream when no message came for so long (default: %(default)g)",
    )
    command.add_argument(
        "--stall-seconds",
        type=float,
        default=limits.stall_seconds,
        metavar="S",
        help="end a stream when its caller has taken no response for so long (default: %(default)g)",
    )
    command.add_argument(
        "--keepalive-seconds",
        type=float,
        default=usual.keepalive_seconds,
        metavar="S",
        help="ask silent connections so often whether they are alive (default: %(default)g)",
    )
    command.add_argument(
        "--drain-seconds",
        type=float,
        default=usual.drain_seconds,
        metavar="S",
        help="for calls in progress when the server is told to stop (default: %(default)g)",
    )

    command.add_argument(
        "--reload-seconds",
        type=float,
        default=usual.reload_seconds,
        metavar="S",
        help="look for new, changed and removed models so often; 0: only on SIGHUP (default: %(default)g)",
    )
    _add_security(command.add_argument_group("who may call"))
    _add_telemetry(command.add_argument_group("what operators see"))


def _add_security(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--certificate", type=Path, metavar="PEM", help="serve TLS with this certificate chain")
    group.add_argument("--key", type=Path, metavar="PEM", help="the certificate's key, without a passphrase")
    group.add_argument("--client-ca", type=Path, metavar="PEM", help="callers must show a certificate that it signed")
    group.add_argument("--tokens", type=Path, metavar="JSON", help="callers must send a bearer token of this file")
    group.add_argument(
        "--allow-insecure", action="store_true", help="plaintext on an address that other machines can reach"
    )


def _add_telemetry(group: argparse._ArgumentGroup) -> None:
    usual = Telemetry()
    group.add_argument("--log-format", choices=("text", "json"), default="text", help="(default: %(default)s)")
    group.add_argument("--log-level", default="info", help="(default: %(default)s)")
    group.add_argument("--log-transcripts", action="store_true", help="also write down what was said")
    group.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics; 0: any free port")
    group.add_argument("--metrics-host", default=usual.metrics_host, metavar="HOST", help="(default: %(default)s)")
    group.add_argument("--trace-endpoint", metavar="URL", help="OTLP collector for traces, http://HOST:4317")


def _serve(args: argparse.Namespace) -> int:
    from asr_server import logs, server

    logs.configure(args.log_format, args.log_level, args.log_transcripts)
    options = ServerOptions(
        host=args.host,
        port=args.port,
        models=tuple(args.models or ()),
        registry=args.registry,
        model_control=args.allow_model_control,
        default_model=args.default_model,
        language_models=tuple(args.language_models or ()),
        audio_folder=args.audio_folder,
        precision=args.precision,
        vision_precision=args.vision_precision,
        vision_limits=VisionLimits(args.vision_queue, args.vision_decoders, args.vision_batch, args.vision_delay),
        threads=args.threads,
        keepalive_seconds=args.keepalive_seconds,
        drain_seconds=args.drain_seconds,
        reload_seconds=args.reload_seconds,
        message_bytes=args.max_message_bytes,
        limits=Limits(
            calls=args.max_calls,
            stream_seconds=args.max_stream_seconds,
            idle_seconds=args.idle_seconds,
            stall_seconds=args.stall_seconds,
            lag_seconds=args.max_lag_seconds,
            ahead_seconds=args.max_ahead_seconds,
        ),
        security=SecurityOptions(args.certificate, args.key, args.client_ca, args.tokens, args.allow_insecure),
        telemetry=Telemetry(args.metrics_host, args.metrics_port, args.trace_endpoint),
    )
    asyncio.run(server.serve(options, _announce))
    print("stopped", flush=True)
    return 0


def _announce(running: Running) -> None:
    print(f"speech models: {', '.join(running.speech_models) or 'none'}")
    print(f"vision models: {', '.join(running.vision_models) or 'none'}")
    if running.metrics_port is not None:
        print(f"metrics on port {running.metrics_port}")
    print(f"listening on {running.address} (Ctrl-C stops)", flush=True)


def _add_transcribe(command: argparse.ArgumentParser) -> None:
    usual = ClientOptions()
    command.set_defaults(run=_transcribe)
    command.add_argument("files", nargs="*", type=Path, metavar="FILE", help="recordings to transcribe")
    command.add_argument("--microphone", action="store_true", help="listen instead of reading files, until Ctrl-C")
    command.add_argument("--device", help="the microphone's name or number (default: the system's)")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--server", default=usual.connection.server, metavar="HOST:PORT", help="(default: %(default)s)")
    where.add_argument("--local", action="store_true", help="recognise in this process, without a server")
    command.add_argument(
        "--models", type=Path, action="append", metavar="DIR", help="bundles for --local (default: the shipped ones)"
    )
    connection.add_arguments(command)
    command.add_argument("--model", default=usual.model, help="name of the model (default: the server's default)")
    command.add_argument("--language", default=usual.language_code, metavar="TAG", help="(default: %(default)s)")
    command.add_argument("--realtime", action="store_true", help="send files no faster than they were spoken")
    command.add_argument("--no-interim", action="store_true", help="finished utterances only")
    command.add_argument(
        "--format", choices=FORMATS, default="txt", help="(default: %(default)s, one utterance a line)"
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="write here instead of to standard output: a file, or an existing folder that gets one file a recording",
    )


def _transcribe(args: argparse.Namespace) -> int:
    if args.microphone == bool(args.files):
        raise ClientError("name one or more files, or say --microphone")
    if args.output and len(args.files) > 1 and not args.output.is_dir():
        raise ClientError(f"--output {args.output} is not a folder, and {len(args.files)} recordings need one")
    if args.output and not args.output.parent.is_dir():
        raise ClientError(f"--output {args.output}: there is no folder {args.output.parent}")
    stems = [path.stem for path in args.files]
    if args.output and args.output.is_dir() and (twice := {stem for stem in stems if stems.count(stem) > 1}):
        raise ClientError(f"recordings share the names {sorted(twice)}: one transcript would overwrite the other")
    hear = _locally(args) if args.local else _remotely(args)
    with _stop_on_interrupt() as stop:
        for path in args.files or [None]:
            _transcribe_one(args, path, hear, stop)
            if path and stop.is_set():
                return 130
    return 0


def _remotely(args: argparse.Namespace) -> Hear:
    options = ClientOptions(connection.read(args, args.server), args.model, args.language, not args.no_interim)
    return lambda chunks: client.hear_remotely(chunks, options)


def _locally(args: argparse.Namespace) -> Hear:
    from asr_server import local

    engine = local.load_engine(tuple(args.models or ()), args.model, args.language)
    return lambda chunks: local.hear_locally(chunks, engine, not args.no_interim)


def _transcribe_one(args: argparse.Namespace, path: Path | None, hear: Hear, stop: threading.Event) -> None:
    chunks = client.file_chunks(path) if path else client.microphone_chunks(stop, args.device)
    if args.realtime and path:
        chunks = client.paced(chunks)
    if path:
        chunks = client.until(stop, chunks)
    # Text for the eyes is shown as it is found; everything else is written when it is whole.
    live = args.output is None and args.format == "txt"
    segments: list[Segment] = []
    try:
        for segment in _collect(hear(chunks), live):
            segments.append(segment)  # noqa: PERF402 (what came before an error counts)
    except Exception:  # a server that goes away in between must not take with it what was heard
        if not live and segments:
            print("incomplete, because of the error that follows:", file=sys.stderr)
            _write_transcript(args, path, segments)
        raise
    if not live:
        _write_transcript(args, path, segments)


def _write_transcript(args: argparse.Namespace, path: Path | None, segments: Sequence[Segment]) -> None:
    transcript = Transcript(str(path or "microphone"), tuple(segments))
    _write(render(transcript, args.format), args.output, path, args.format)


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C ends the recording, so that what was heard is still recognised; the second one the program."""
    stop = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _collect(heard: Iterable[Heard], live: bool) -> Iterator[Segment]:
    """The finished utterances. On a terminal the text still being heard is shown in place."""
    in_place = sys.stderr.isatty()
    for item in heard:
        if in_place:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if isinstance(item, Segment):
            if live:
                print(item.text, flush=True)
            yield item
        elif in_place:
            width = shutil.get_terminal_size().columns - 1
            print(item[-width:], end="", file=sys.stderr, flush=True)  # the end is where it changes


def _write(text: str, output: Path | None, source: Path | None, suffix: str) -> None:
    if output is None:
        print(text, end="", flush=True)
        return
    if output.is_dir():
        output = output / f"{source.stem if source else 'microphone'}.{suffix}"
    output.write_text(text, encoding="utf-8")
    print(output)
