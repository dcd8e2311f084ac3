"""The check of manifests before a training: rules about each line, about lines together, and about test sets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asr_server.alphabet import Alphabet
from training.data_entries import ERROR, RULES, WARNING, Entry, Finding, read_entries
from training.data_overlap import Facts, duplicates, shared_with_tests
from training.data_rules import Limits, of_entry
from training.recording_facts import measure_all

TRAINING, NOISE, TEST = "training", "noise", "test"


@dataclass(frozen=True)
class CheckOptions:
    """What is checked. Errors of the rules in `allowed` are known and wanted: they count as warnings."""

    manifests: tuple[Path, ...]
    noises: tuple[Path, ...] = ()
    tests: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    allowed: frozenset[str] = frozenset()
    jobs: int = 1
    headers: bool = False  # read no samples: quick, and blind for loudness and for copies that are no FLAC

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs is {self.jobs}: at least 1")
        if not self.manifests and not self.noises and not self.tests:
            raise ValueError("no manifest to check: name at least one")
        for rule in sorted(self.allowed - set(RULES)):
            raise ValueError(f"there is no rule {rule!r} to allow. Select from {', '.join(RULES)}")


@dataclass(frozen=True)
class Summary:
    """One manifest in a line of the table."""

    manifest: Path
    kind: str
    utterances: int
    hours: float
    speakers: int  # 0: the manifest names none
    words: int
    characters_per_second: float
    errors: int
    warnings: int


@dataclass(frozen=True)
class Report:
    """What was found, in the order of the manifests and their lines."""

    summaries: list[Summary]
    findings: list[Finding]

    @property
    def clean(self) -> bool:
        """Whether there are no errors; warnings may be."""
        return not any(finding.severity == ERROR for finding in self.findings)


def check(options: CheckOptions, alphabet: Alphabet | None = None) -> Report:
    """Read every line and every recording; ValueError for a manifest that cannot be read or is named twice."""
    kinds = [(path, TRAINING) for path in options.manifests]
    kinds += [(path, NOISE) for path in options.noises] + [(path, TEST) for path in options.tests]
    _refuse_repeats([path for path, _ in kinds])
    read = {path: read_entries(path, kind == NOISE) for path, kind in kinds}
    entries = {path: found for path, (found, _) in read.items()}
    facts = measure_all({entry.audio for found in entries.values() for entry in found}, options.jobs, options.headers)
    findings = [finding for _, wrong in read.values() for finding in wrong]
    findings += _of_each(entries.values(), facts, options.limits, alphabet or Alphabet())
    tests = _joined(entries, options.tests)
    learned = _joined(entries, (*options.manifests, *options.noises))
    findings += [*duplicates(learned, facts), *duplicates(tests, facts), *shared_with_tests(learned, tests, facts)]
    findings = [_lowered(finding, options.allowed) for finding in findings]
    places = {path: place for place, (path, _) in enumerate(kinds)}
    findings.sort(key=lambda finding: (places[finding.manifest], finding.line))
    return Report([_summary(path, kind, entries[path], facts, findings) for path, kind in kinds], findings)


def _joined(entries: dict[Path, list[Entry]], paths: Iterable[Path]) -> list[Entry]:
    return [entry for path in paths for entry in entries[path]]


def _of_each(groups: Iterable[list[Entry]], facts: Facts, limits: Limits, alphabet: Alphabet) -> list[Finding]:
    return [
        finding
        for entries in groups
        for entry in entries
        for finding in of_entry(entry, facts[entry.audio], limits, alphabet)
    ]


def _refuse_repeats(paths: Sequence[Path]) -> None:
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path} is named twice: a manifest is for training, noise or a test, once")


def _lowered(finding: Finding, allowed: frozenset[str]) -> Finding:
    if finding.rule not in allowed:
        return finding
    return Finding(finding.manifest, finding.line, WARNING, finding.rule, finding.text)


def _summary(path: Path, kind: str, entries: list[Entry], facts: Facts, findings: list[Finding]) -> Summary:
    """Hours are of the recordings that could be read."""
    seconds = sum(facts[entry.audio].seconds for entry in entries)
    spoken = [entry for entry in entries if not facts[entry.audio].trouble]
    mine = [finding.severity for finding in findings if finding.manifest == path]
    return Summary(
        path,
        kind,
        len(entries),
        seconds / 3600,
        len({entry.speaker for entry in entries if entry.speaker}),
        sum(len(entry.text.split()) for entry in entries),
        sum(len(entry.text) for entry in spoken) / seconds if seconds else 0.0,
        mine.count(ERROR),
        len(mine) - mine.count(ERROR),
    )
