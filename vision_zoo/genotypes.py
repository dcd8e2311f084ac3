"""Genotypes from and to plain data, so that any cell of the search space can be written into a JSON file.

{"normal": {"blocks": [{"inputs": [0, 1], "operations": ["separable_5x5", "identity"], "combination": "add"}, ...],
            "output": [1, 2]},
 "reduction": {...}}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision_zoo.cells import NASNET_A, Block, CellGenotype, Genotype

GENOTYPES: dict[str, Genotype] = {"nasnet-a": NASNET_A}


def genotype_from_json(raw: object) -> Genotype:
    """An object as above -> a genotype. ValueError says where it is wrong, and what may stand there."""
    fields = _object(raw, {"normal", "reduction"}, set(), "genotype")
    return Genotype(_cell(fields["normal"], "genotype.normal"), _cell(fields["reduction"], "genotype.reduction"))


def genotype_to_json(genotype: Genotype) -> dict[str, Any]:
    """What genotype_from_json reads."""
    return dataclasses.asdict(genotype)


def read_genotype(file: Path) -> Genotype:
    """A genotype from a JSON file. Raises ValueError."""
    try:
        return genotype_from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"genotype file {file} does not exist") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _cell(raw: object, where: str) -> CellGenotype:
    fields = _object(raw, {"blocks", "output"}, set(), where)
    blocks = _list(fields["blocks"], f"{where}.blocks")
    output = _integers(fields["output"], f"{where}.output")
    made = tuple(_block(block, f"{where}.blocks[{index}]") for index, block in enumerate(blocks))
    try:
        return CellGenotype(made, output)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _block(raw: object, where: str) -> Block:
    fields = _object(raw, {"inputs", "operations"}, {"combination"}, where)
    inputs = _integers(fields["inputs"], f"{where}.inputs")
    operations = tuple(
        _text(name, f"{where}.operations") for name in _list(fields["operations"], f"{where}.operations")
    )
    if len(inputs) != 2 or len(operations) != 2:
        raise ValueError(
            f"{where} has {len(inputs)} inputs and {len(operations)} operations; a block takes two of each"
        )
    combination = _text(fields.get("combination", "add"), f"{where}.combination")
    return Block((inputs[0], inputs[1]), (operations[0], operations[1]), combination)


def _object(raw: object, required: set[str], optional: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} {raw!r} must be an object with {sorted(required)}")
    if raw.keys() - required - optional or required - raw.keys():
        raise ValueError(f"{where} has the keys {sorted(raw)}; it takes {sorted(required | optional)}")
    return raw


def _list(raw: object, where: str) -> list[Any]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"{where} {raw!r} must be a list")
    return list(raw)


def _integers(raw: object, where: str) -> tuple[int, ...]:
    values = _list(raw, where)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{where} {raw!r} must be a list of whole numbers")
    return tuple(values)


def _text(raw: object, where: str) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{where} {raw!r} must be text")
    return raw
