"""What `check` found, in lines for people and in numbers for programs."""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jepa_jax.data.check import SplitReport

_Groups = Sequence[Sequence[tuple[str, str]]]  # equal images: (split, name)
_ODD, _KINDS = 20, 10  # images of each split that are named, and what is odd about all of them
_CLASSES = 20  # more than these are not listed one by one


def report_lines(
    reports: Mapping[str, SplitReport], groups: _Groups, changed: Sequence[str]
) -> Iterator[str]:
    """Everything, with names; what is worst last, where it stays on the screen."""
    for split, report in reports.items():
        yield f"{split}: {report.images} images, {len(report.bad)} bad, {len(report.odd)} odd"
        yield f"  kinds: {', '.join(f'{n} {kind}' for kind, n in report.formats.items())}"
        for name in ("height", "width"):
            low, middle, high = getattr(report, name)
            yield f"  {name}: {low} to {high} pixels, half of them up to {middle}"
        yield f"  config.data.mean = {report.mean}, config.data.std = {report.std}"
        yield from _class_lines(report.per_class)
    for split, report in reports.items():
        for name, whys in itertools.islice(report.odd.items(), _ODD):
            yield f"odd: {split}: {name}: {'; '.join(whys)}"
        if len(report.odd) > _ODD:
            kinds = collections.Counter(why for whys in report.odd.values() for why in whys)
            listed = ", ".join(f"{n} {why}" for why, n in kinds.most_common(_KINDS))
            yield f"odd: {split}: {len(report.odd)} in all: {listed}"
    for group in groups:
        across = " (in different splits)" if _is_across(group) else ""
        yield f"the same{across}: {', '.join(f'{split}: {name}' for split, name in group)}"
    for split, report in reports.items():
        for name, why in report.bad.items():
            yield f"bad: {split}: {name}: {why}"
    for name in changed:
        yield f"changed: {name} does not match its checksum"


def _class_lines(per_class: Mapping[str, int]) -> Iterator[str]:
    if not per_class:
        yield "  no classes"
        return
    counts = list(per_class.values())
    yield f"  {len(counts)} classes of {min(counts)} to {max(counts)} images"
    if len(counts) <= _CLASSES:
        yield f"  {', '.join(f'{name} {count}' for name, count in per_class.items())}"
    missing = [name for name, count in per_class.items() if not count]
    if missing:
        yield f"  without images: {', '.join(missing)}"


def _is_across(group: Sequence[tuple[str, str]]) -> bool:
    return len({split for split, _ in group}) > 1


def summary(
    reports: Mapping[str, SplitReport], groups: _Groups, changed: Sequence[str]
) -> dict[str, Any]:
    """What the JSON line says: numbers, and the names of changed files alone."""
    splits = {}
    for split, report in reports.items():
        missing = [name for name, count in report.per_class.items() if not count]
        splits[split] = vars(report) | {
            "bad": len(report.bad),
            "odd": len(report.odd),
            "missing_classes": missing,
        }
    return {
        "images": sum(report.images for report in reports.values()),
        "bad": sum(len(report.bad) for report in reports.values()),
        "odd": sum(len(report.odd) for report in reports.values()),
        "duplicates": sum(len(group) - 1 for group in groups),
        "duplicates_across_splits": sum(_is_across(group) for group in groups),
        "changed_files": list(changed),
        "splits": splits,
    }
