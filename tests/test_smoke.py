"""`python -m asr_server.smoke`, which is what `make run` runs, on toy bundles of both kinds in one folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import vision_zoo.bundle
from tests.speech_fixtures import RATE, save_toy_bundle, speak
from vision_zoo.nasnet import NASNet, NASNetConfig
from vision_zoo.transforms import Preprocessing

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("smoke")
    save_toy_bundle(folder / "models")
    torch.manual_seed(0)
    network = NASNet(NASNetConfig(cells=1, filters=24, num_classes=3, auxiliary=False, drop_path_keep=1.0))
    vision_zoo.bundle.save(
        folder / "models" / "shapes",
        name="shapes",
        version="1",
        model=network,
        labels=("square", "circle", "star"),
        preprocessing=Preprocessing(),
        card="# Shapes",
    )
    soundfile.write(folder / "talk.wav", speak("go north"), RATE)
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / "shape.png")
    command = [sys.executable, "-m", "asr_server.smoke", "--port", "0", "--models", str(folder / "models")]
    return [*command, "--speech", str(folder / "talk.wav"), "--image", str(folder / "shape.png")]


def test_shows_both_and_serves_on_until_interrupted(command: list[str]) -> None:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        shown = ""
        for line in process.stdout:
            shown += line
            if "Ctrl-C stops the server." in line:
                break
        assert "speech models: tones\nvision models: shapes\nlistening on 127.0.0.1:" in shown
        assert "heard: go north   (0.30 to " in shown
        assert "seen:" in shown and all(label in shown for label in ("square", "circle", "star"))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert (process.returncode, out.strip()) == (0, "stopped")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_server_that_cannot_start_is_told_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asr_server.smoke", "--port", "0", "--models", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: no bundles under")
    assert ended.stderr.count("\n") == 1
