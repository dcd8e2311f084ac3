"""A folder that says how well a bundle hears a manifest.

report.json         all figures, rows and worst utterances
report.txt          what is printed
report.md           a page of tables and the pictures, of the last way in detail
utterances.jsonl    each utterance and what was heard, for every way
*.png               errors, speaker, source, kind, snr, length, utterances, rtf: those that the manifest allows
"""

import json
from collections.abc import Iterator
from pathlib import Path

from training import speech_plots
from training.alignment import wrapped
from training.evaluation import Evaluation, Way, made
from training.heard import Heard
from training.speech_figures import Breakdown, worst

WIDTH = 110  # characters of an alignment
ROWS = 100  # of a table on the page; report.json has all


def write(evaluation: Evaluation, folder: Path, count: int) -> None:
    """`count`: of worst utterances. The folder is made; files in it are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = speech_plots.draw(evaluation, folder)
    texts = {
        "report.json": json.dumps(document(evaluation, count), indent=2) + "\n",
        "report.txt": evaluation.table() + "\n",
        "report.md": page(evaluation, count, pictures),
        "utterances.jsonl": "".join(f"{json.dumps(line)}\n" for line in evaluation.lines()),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def document(evaluation: Evaluation, count: int) -> dict[str, object]:
    return {
        "made": {**made(), "seed": evaluation.seed},
        "manifest": evaluation.manifest.name,
        "figures": evaluation.as_json(),
        "rows": {
            way.name: {part.by: {row.name: row.figures.as_json() for row in part.rows} for part in way.breakdowns}
            for way in evaluation.ways
        },
        "worst": {way.name: [_worst(heard) for heard in worst(way.heard, count)] for way in evaluation.ways},
    }


def _worst(heard: Heard) -> dict[str, object]:
    return {**heard.as_json(), "alignment": [[pair.said, pair.heard] for pair in heard.alignment]}


def page(evaluation: Evaluation, count: int, pictures: dict[str, str]) -> str:
    """Markdown; `pictures`: file names by what they show."""
    way = evaluation.main
    parts = [f"# {evaluation.bundle.name} on {evaluation.manifest.name}", "```\n" + evaluation.table() + "\n```"]
    parts += ["\n".join(f"- {name}: {value}" for name, value in {**made(), "seed": evaluation.seed}.items())]
    parts += [_picture(pictures, name) for name in ("errors", "rtf") if name in pictures]
    for part in way.breakdowns:
        parts += [f"## By {part.by}, {way.name}", _picture(pictures, part.by), _table(part)]
    parts += [f"## Worst utterances, {way.name}", _picture(pictures, "utterances"), *_alignments(way, count)]
    return "\n\n".join(parts) + "\n"


def _picture(pictures: dict[str, str], name: str) -> str:
    return f"![{name}]({pictures[name]})"


def _table(part: Breakdown) -> str:
    shown = sorted(part.rows, key=lambda row: -row.figures.words.rate) if len(part.rows) > ROWS else part.rows
    lines = [f"| {part.by} | utterances | words | WER % | 95 % | CER % |", "|---|--:|--:|--:|---|--:|"]
    for row in shown[:ROWS]:
        of = row.figures
        lines.append(
            f"| {row.name} | {of.utterances} | {of.words.reference} | {of.words.rate:.2f} | {of.wer} | "
            f"{of.characters.rate:.2f} |"
        )
    return "\n".join(lines)


def _alignments(way: Way, count: int) -> Iterator[str]:
    for heard in worst(way.heard, count):
        who = heard.utterance.id or heard.utterance.audio.name
        yield f"{who}: {heard.words.errors} errors in {heard.words.reference} words"
        lines = [f"said  {said}\nheard {found}" for said, found in wrapped(heard.alignment, WIDTH)]
        yield "```\n" + "\n\n".join(lines) + "\n```"
