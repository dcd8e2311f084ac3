#!/usr/bin/env python3
"""Generate the gRPC stubs of both services from protos/.

    python scripts/generate_protos.py            # write asr_server/wire and vision_zoo/wire
    python scripts/generate_protos.py --out DIR  # write the same tree somewhere else (the drift test)

Stubs are committed, so nobody needs a proto compiler to install the package. protoc derives a stub's import path
from the path of its .proto file; the mapping below shows protoc each folder under the name of the Python package
it belongs to, so the imports come out right and nothing has to be patched afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Python package -> folders of .proto files.
PACKAGES = {
    "asr_server/wire": ("protos/earsight/speech/v1", "protos/earsight/longrunning/v1", "protos/earsight/riva/v1"),
    "vision_zoo/wire": ("protos/earsight/vision/v1", "protos/earsight/annotation/v1", "protos/inference"),
}


def generate(out: Path) -> list[Path]:
    """Write the stubs of every package under `out`; returns the files written."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf/*.proto
    plugins = Path(sys.executable).parent  # mypy-protobuf's programs stand beside the interpreter they belong to
    written: list[Path] = []
    for package, folders in PACKAGES.items():
        names = sorted(path.name for folder in folders for path in (ROOT / folder).glob("*.proto"))
        if len(names) < len(folders):
            raise SystemExit(f"error: no .proto files in one of {', '.join(folders)}")
        target = out / package
        target.mkdir(parents=True, exist_ok=True)
        sources = " and ".join(folders)
        (target / "__init__.py").write_text(f'"""Generated from {sources} by scripts/generate_protos.py."""\n')
        status = protoc.main(
            [
                "protoc",
                *(f"--proto_path={package}={ROOT / folder}" for folder in folders),
                f"--proto_path={well_known}",
                f"--python_out={out}",
                f"--grpc_python_out={out}",
                *(f"--plugin=protoc-gen-{name}={plugins / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
                f"--mypy_out=quiet:{out}",
                f"--mypy_grpc_out=quiet:{out}",
                *(f"{package}/{name}" for name in names),
            ]
        )
        if status != 0:
            raise SystemExit(f"error: protoc ended with status {status} for {package}")
        written += sorted(target.iterdir())
    return [path for path in written if path.is_file()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate the gRPC stubs from protos/.")
    parser.add_argument("--out", type=Path, default=ROOT, help="root of the tree to write (default: the repository)")
    for path in generate(parser.parse_args(arguments).out.resolve()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
