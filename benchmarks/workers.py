"""Processes of a benchmark that answer lines of JSON: a request on standard input, a reply on standard output."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """A module run with `python -m`, from `with` to the end of its block."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        self._name, self._log = module, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def ask(self, request: dict[str, Any]) -> Any:
        self.tell(request)
        return self.reply()

    def _ended(self) -> ValueError:
        self._process.wait()
        return ValueError(f"{self._name} ended with status {self._process.returncode}: {last_line(self._log)}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it holds nothing that would have to be saved
        self._process.communicate()


def last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
