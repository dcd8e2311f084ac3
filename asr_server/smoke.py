"""What `make run` does: start the server, show that it hears and sees, and go on serving.

    python -m asr_server.smoke

The server is a process of its own and everything shown went through its port. Ctrl-C or SIGTERM stops both.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc

from asr_server import client
from asr_server.client import ClientError, ClientOptions
from asr_server.connection import Connection
from asr_server.transcripts import Segment
from vision_zoo.wire import vision_pb2, vision_pb2_grpc

SPEECH_SAMPLES = Path(__file__).parent / "samples"
IMAGE_SAMPLES = Path(vision_pb2.__file__).parent.parent / "samples"

_HOW_TO_CALL = """
Call it:
  {bin}/asr-server transcribe --server {address} FILE.wav
  {bin}/vision-zoo classify --server {address} FILE.png
  grpcurl -plaintext {address} list
google-cloud-speech works unchanged, see docs/speech-api.md. Ctrl-C stops the server.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    serve = [sys.executable, "-m", "asr_server", "serve", "--port", str(args.port)]
    models = [part for folder in args.models or () for part in ("--models", str(folder))]
    # In a session of its own: a terminal's Ctrl-C reaches it once, through us. Our handler passes it on instead of
    # raising, because an exception that comes up inside a library's callback would be lost there.
    server = subprocess.Popen([*serve, *models], stdout=subprocess.PIPE, text=True, start_new_session=True)
    stopping = threading.Event()

    def stop(*_: object) -> None:
        if not stopping.is_set():
            stopping.set()
            server.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        address = _wait(server)
        if address is not None:  # else it has ended and said why
            _show(address, args.speech, args.image)
            if args.once:
                stop()
            else:
                print(_HOW_TO_CALL.format(bin=_programs(), address=address), flush=True)
    except (ClientError, OSError, grpc.RpcError) as error:
        if not stopping.is_set():
            print(f"error: {error.details() if isinstance(error, grpc.Call) else error}", file=sys.stderr)
            stop()
            server.communicate()
            return 1
    print(_rest(server), end="", flush=True)
    return server.returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asr_server.smoke", description="Start the server, transcribe and classify a sample, serve on."
    )
    parser.add_argument("--port", type=int, default=50051, help="0 takes any free one (default: %(default)s)")
    parser.add_argument(
        "--models", type=Path, action="append", metavar="DIR", help="bundles (default: the shipped models)"
    )
    parser.add_argument("--speech", type=Path, default=_sample(SPEECH_SAMPLES), help="default: %(default)s")
    parser.add_argument("--image", type=Path, default=_sample(IMAGE_SAMPLES), help="default: %(default)s")
    parser.add_argument("--once", action="store_true", help="stop after the samples")
    return parser


def _sample(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob("*")) if path.suffix in (".wav", ".png")), None)


def _wait(server: subprocess.Popen[str]) -> str | None:
    """The address once the server is ready; None when it has ended instead."""
    assert server.stdout
    for line in server.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"listening on (\S+)", line):
            return found[1]
    return None


def _rest(server: subprocess.Popen[str]) -> str:
    """What it says until it has ended. In turns, because a signal that comes just before a wait begins is only looked
    at when the wait is over."""
    while True:
        try:
            return server.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            continue


def _show(address: str, speech: Path | None, image: Path | None) -> None:
    """One transcript and one label, each through the port."""
    if speech:
        print(f"\n{_relative(speech)}")
        for heard in client.hear_remotely(client.file_chunks(speech), ClientOptions(Connection(address))):
            if isinstance(heard, Segment):
                print(f"  heard: {heard.text}   ({heard.start:.2f} to {heard.end:.2f} s)", flush=True)
    if image:
        print(f"\n{_relative(image)}")
        with grpc.insecure_channel(address) as channel:
            request = vision_pb2.ClassifyRequest(image=image.read_bytes(), top_k=3)
            answer = vision_pb2_grpc.VisionStub(channel).Classify(request)
        labels = ", ".join(f"{each.label} {each.probability:.3f}" for each in answer.predictions)
        print(f"  seen:  {labels}", flush=True)


def _programs() -> str:
    """The folder with asr-server and vision-zoo, as short as it can be written."""
    return str(_relative(Path(sys.executable).parent))


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
