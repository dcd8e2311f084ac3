#!/usr/bin/env python3
"""The speech plug-ins of two voice agent frameworks, unmodified, against a running server.

    python -m venv agents && agents/bin/pip install livekit-plugins-nvidia==1.8.9 "pipecat-ai[nvidia]==1.14.0"
    asr-server serve
    agents/bin/python scripts/voice_agents.py livekit 127.0.0.1:50051 asr_server/samples/one-five-two-one-seven.wav
    agents/bin/python scripts/voice_agents.py pipecat 127.0.0.1:50051 asr_server/samples/one-five-two-one-seven.wav

Both speak Riva's contract. They need an environment of their own: they pin other versions of what this project uses.
The file is streamed in real time with a second of silence behind it; final transcripts are printed, one a line. The
exit status is 1 where there were none.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import wave
from collections.abc import AsyncIterator
from typing import Any

CHUNK_SECONDS = 0.02


async def paced(audio: bytes, rate: int) -> AsyncIterator[bytes]:
    size = round(rate * CHUNK_SECONDS) * 2
    for start in range(0, len(audio), size):
        yield audio[start : start + size]
        await asyncio.sleep(CHUNK_SECONDS)


async def livekit(address: str, audio: bytes, rate: int) -> list[str]:
    from livekit import rtc  # type: ignore[import-not-found]
    from livekit.agents import stt  # type: ignore[import-not-found]
    from livekit.plugins import nvidia  # type: ignore[import-not-found]

    stream = nvidia.STT(server=address, use_ssl=False, model="").stream()

    async def push() -> None:
        async for chunk in paced(audio, rate):
            stream.push_frame(rtc.AudioFrame(chunk, rate, 1, len(chunk) // 2))
        stream.end_input()

    pushing = asyncio.create_task(push())
    finals = [
        event.alternatives[0].text async for event in stream if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT
    ]
    await pushing
    return finals


async def pipecat(address: str, audio: bytes, rate: int) -> list[str]:
    from pipecat.frames.frames import (  # type: ignore[import-not-found]
        EndFrame,
        InputAudioRawFrame,
        TranscriptionFrame,
    )
    from pipecat.pipeline.pipeline import Pipeline  # type: ignore[import-not-found]
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker  # type: ignore[import-not-found]
    from pipecat.processors.frame_processor import FrameProcessor  # type: ignore[import-not-found]
    from pipecat.services.nvidia.stt import NvidiaSTTService  # type: ignore[import-not-found]
    from pipecat.workers.runner import WorkerRunner  # type: ignore[import-not-found]

    finals: list[str] = []

    class Listener(FrameProcessor):  # type: ignore[misc]
        async def process_frame(self, frame: Any, direction: Any) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, TranscriptionFrame):
                finals.append(frame.text)
            await self.push_frame(frame, direction)

    service = NvidiaSTTService(server=address, use_ssl=False, sample_rate=rate)
    worker = PipelineWorker(
        Pipeline([service, Listener()]), params=PipelineParams(audio_in_sample_rate=rate), enable_rtvi=False
    )

    async def push() -> None:
        async for chunk in paced(audio, rate):
            await worker.queue_frame(InputAudioRawFrame(audio=chunk, sample_rate=rate, num_channels=1))
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    pushing = asyncio.create_task(push())
    await runner.run()
    await pushing
    return finals


def main() -> int:
    parser = argparse.ArgumentParser(description="Stream a WAV file with a voice agent framework.")
    parser.add_argument("framework", choices=("livekit", "pipecat"))
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("path", metavar="FILE.wav")
    told = parser.parse_args()
    with wave.open(told.path) as file:
        rate, audio = file.getframerate(), file.readframes(file.getnframes())
    run = livekit if told.framework == "livekit" else pipecat
    finals = asyncio.run(run(told.address, audio + bytes(2 * rate), rate))
    print("\n".join(finals))
    return 0 if finals else 1


if __name__ == "__main__":
    sys.exit(main())
