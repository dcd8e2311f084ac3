"""The server under load: `asr-server serve` in a process of its own, its use of the machine, its own counters."""

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import machine
from benchmarks.workers import ROOT, last_line

READY_SECONDS = 300.0
STOP_SECONDS = 60.0

Counters: TypeAlias = dict[str, float]


def command(models: Path, calls: int, metrics_port: int | None) -> list[str]:
    """The one place that knows the server's arguments."""
    words = [sys.executable, "-m", "asr_server", "serve", "--port", "0", "--models", str(models)]
    words += ["--max-calls", str(calls)]
    return words if metrics_port is None else [*words, "--metrics-port", str(metrics_port)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class ServerProcess:
    """Ready when made; ends with its `with` block. ValueError with the server's last words where it does not start."""

    def __init__(self, command: list[str], log: Path, metrics: str | None = None) -> None:
        self._log, self._metrics = log, metrics
        began = time.monotonic()
        with log.open("w") as output:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        self.pid = self._process.pid
        try:
            self.address = self._wait_until_ready(began + READY_SECONDS)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.ready_seconds = time.monotonic() - began

    def _wait_until_ready(self, until: float) -> str:
        while self._process.poll() is None and time.monotonic() < until:
            if found := re.search(r"listening on (\S+:\d+)", self._log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.05)
        if self._process.poll() is None:
            raise ValueError(f"the server was not ready after {READY_SECONDS:g} s")
        raise ValueError(f"the server ended with status {self._process.returncode}: {last_line(self._log)}")

    def usage(self) -> machine.Usage:
        if self._process.poll() is not None:
            raise ValueError(f"the server ended with status {self._process.returncode}: {last_line(self._log)}")
        return machine.usage(self.pid)

    def counters(self) -> Counters:
        """What it counts of its own work, by name and label values; empty where it says nothing."""
        if self._metrics is None:
            return {}
        try:
            with urllib.request.urlopen(self._metrics, timeout=5) as reply:
                return read_counters(reply.read().decode())
        except OSError:
            return {}

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def read_counters(text: str) -> Counters:
    """Our sums and counts in Prometheus' text format, named as in `earsight_stage_duration_seconds_sum decoder`."""
    found: Counters = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("earsight_") and sample.name.endswith(("_total", "_sum", "_count")):
                found[" ".join([sample.name, *sample.labels.values()])] = sample.value
    return found


def increase(before: Counters, after: Counters) -> Counters:
    """What was added in between, where anything was."""
    grown = {name: round(value - before.get(name, 0.0), 6) for name, value in after.items()}
    return {name: value for name, value in grown.items() if value > 0}
