"""Who may import whom, read off the sources, and that every import is a declared and pinned dependency."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("asr_server", "vision_zoo", "training")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# The outermost files: they speak gRPC, everything below them is plain synchronous code.
GRPC_FILES = {
    "service.py",
    "riva_service.py",
    "operations_service.py",
    "auth_interceptor.py",
    "gate.py",
    "health_state.py",
    "malformed_interceptor.py",
    "transport.py",
    "telemetry_interceptor.py",
    "server.py",
    "client.py",
    "connection.py",
    "cli.py",
    "smoke.py",
    "healthcheck.py",
    "inference_service.py",
    "label_detection.py",
}
GRPC_NAMES = {"grpc", "grpc_health", "grpc_reflection", "grpc_status"}
LIGHTNING_NAMES = {"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"}
COMPOSITION_ROOT = Path("asr_server/server.py")

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "lightning_fabric": "pytorch-lightning",
    "opentelemetry": "opentelemetry-sdk",
    "pytorch_lightning": "pytorch-lightning",
}


def imported(source: str) -> Iterator[str]:
    """The modules that a source imports, wherever in it, as dotted names; relative imports do not occur here."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def top_level(path: Path) -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in imported(path.read_text()))


def importers(names: set[str]) -> set[Path]:
    return {path.relative_to(ROOT) for path in SOURCES if top_level(path) & names}


def test_imported_sees_every_form() -> None:
    source = "import a.b\nfrom c import d as e\ndef f():\n    import g\nif True:\n    from h.i import j\n"
    assert set(imported(source)) == {"a.b", "c", "c.d", "g", "h.i", "h.i.j"}


def test_the_packages_have_sources() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(PACKAGES)


def test_grpc_stays_in_the_outermost_files() -> None:
    found = importers(GRPC_NAMES)
    assert COMPOSITION_ROOT in found
    wrong = {path for path in found if path.parent.name != "wire" and path.name not in GRPC_FILES}
    assert wrong == set()
    assert not any(path.parts[0] == "training" for path in found)


def test_lightning_stays_in_training() -> None:
    found = importers(LIGHTNING_NAMES)
    assert found
    assert {path.parts[0] for path in found} == {"training"}


def test_nothing_imports_training_but_itself() -> None:
    assert {path.parts[0] for path in importers({"training"})} == {"training"}


def test_one_composition_root_knows_both_packages() -> None:
    speech_that_sees = {path for path in importers({"vision_zoo"}) if path.parts[0] == "asr_server"}
    assert speech_that_sees - {Path("asr_server/smoke.py")} == {COMPOSITION_ROOT}
    vision = [path.read_text() for path in SOURCES if path.is_relative_to(ROOT / "vision_zoo")]
    found = {name for source in vision for name in imported(source) if name.startswith("asr_server")}
    assert found == {"asr_server", "asr_server.connection", "asr_server.connection.Connection"}, "how clients connect"


def requirements(*extras: str) -> dict[str, str]:
    """Name -> requirement of the distribution, with those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    names = {match.group().lower(): line for line in lines if (match := re.match(r"[A-Za-z0-9._-]+", line))}
    assert len(names) == len(lines)
    return names


@pytest.mark.parametrize(
    ("packages", "extras"),
    [(("asr_server", "vision_zoo"), ("microphone", "tracing", "keras")), (("training",), ("train",))],
    ids=["serving", "training"],
)
def test_every_import_is_declared(packages: tuple[str, ...], extras: tuple[str, ...]) -> None:
    declared = requirements(*extras)
    known = {*PACKAGES, *sys.stdlib_module_names}
    sources = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in packages]
    used = {name for path in sources for name in top_level(path) if name not in known}
    assert "torch" in used
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in used} <= set(declared)


def test_every_requirement_is_pinned_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    assert [version for version in pins.values() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    assert set(requirements("microphone", "tracing", "keras", "train", "benchmarks", "dev")) - pinned == set()
