"""Libraries that may influence a record although its identity does not name them, and the remark on
records of different versions side by side."""

from collections.abc import Iterable

from harness.analysis.reader import Record

LIBRARIES = ("transformers", "tokenizers", "lm-eval", "datasets")
MAX_NAMED = 3  # records that a sentence names


def differences(named: Iterable[tuple[str, Record]]) -> str | None:
    """Return a sentence about libraries whose versions differ between these records; None if there
    are none. A version that a record does not hold does not count as different.

    Args:
        named: (name in the sentence, record).
    """
    records_of: dict[str, dict[str, list[str]]] = {}  # names by library and version
    for name, record in named:
        for packages in (record.environment.packages, *record.environment.earlier_packages):
            for library in LIBRARIES:
                if version := packages.get(library):
                    records_of.setdefault(library, {}).setdefault(version, []).append(name)
    parts = [
        f"{library} " + " and ".join(f"{version} ({_some(names)})" for version, names in sorted(versions.items()))
        for library, versions in records_of.items()
        if len(versions) > 1
    ]
    return f"Differences may come from other versions: {'; '.join(parts)}." if parts else None


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
