"""The libraries that may decide what a record holds although its identity does not name them, and
what is said where records of other versions stand side by side."""

from collections.abc import Iterable

from harness.analysis.reader import Record

DECIDING = ("transformers", "tokenizers", "lm-eval", "datasets")
NAMED = 3  # records that a sentence names


def differences(named: Iterable[tuple[str, Record]]) -> str | None:
    """A sentence with the libraries of which these records, each with the name a reader knows it
    by, were made with several versions; None if there is none. What no record says is not held
    against it."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, record in named:
        for packages in (record.environment.packages, *record.environment.earlier_packages):
            for library in DECIDING:
                if version := packages.get(library):
                    found.setdefault(library, {}).setdefault(version, []).append(name)
    told = [
        f"{library} " + " and ".join(f"{version} ({_some(names)})" for version, names in sorted(versions.items()))
        for library, versions in found.items()
        if len(versions) > 1
    ]
    return f"Differences may come from other versions: {'; '.join(told)}." if told else None


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
