"""Utterances in several processes: what becomes of them when the one that asked is killed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import time
from training.hearing import spread

if __name__ == "__main__":
    for _ in spread(time.sleep, [0, 600, 600], 2):
        print("ready", flush=True)
"""


def test_workers_end_with_the_process_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as asked:
        assert asked.stdout is not None
        while "ready" not in asked.stdout.readline():
            pass
        asked.kill()
        # The workers have the other end of the pipe, which is closed when the last of them is gone.
        asked.communicate(timeout=60)
