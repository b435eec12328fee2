"""Texts for the tasks that read one: files of the user, the held-out texts of the package, and corpora
of the Hugging Face Hub."""

import functools
import hashlib
import os
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import read_file
from harness.common.paths import TEXTS

HELD_OUT = ("novel", "code")  # names of TEXTS/NAME.txt
CORPUS = "hf:"  # begins hf:NAME/CONFIG/SPLIT
CORPORA = {
    "wikitext-103": f"{CORPUS}Salesforce/wikitext/wikitext-103-raw-v1/test",
    "pg-19": f"{CORPUS}emozilla/pg19/default/test",
}
COLUMN = "text"  # of a corpus


def read_text(option: str, path: str | None) -> str:
    """Return the content of a text file, unchanged, or the rows of a corpus, each ended by a line
    break.

    Args:
        option: name of the option, for errors.
        path: its value, a path, one of HELD_OUT or CORPORA, or hf:NAME/CONFIG/SPLIT.

    Raises:
        UserError: without a path, or if the file is missing, no regular file, not UTF-8 or blank, and
            for a corpus that cannot be had or has no column of texts.
    """
    if not path:
        known = ", ".join((*HELD_OUT, *CORPORA))
        raise UserError(f"{option} is missing: name a text file, {option}=FILE, or one of {known}.")
    if (corpus := CORPORA.get(path, path)).startswith(CORPUS):
        return _corpus(option, corpus)
    file = TEXTS / f"{path}.txt" if path in HELD_OUT else Path(os.path.expanduser(path))
    try:
        text = (read_file(file) or b"").decode("utf-8") if file.is_file() else None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{option}={path} cannot be read as UTF-8 text: {error}.") from None
    if text is None:
        raise UserError(f"{option}={path}: there is no such file.")
    if not text.strip():
        raise UserError(f"{option}={path} holds no text.")
    return text


def text_hash(text: str) -> str:
    """Return the sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def held_out_name(sha256: object) -> str | None:
    """Return the name of the held-out text with this hash; None for another text."""
    return next((name for name in HELD_OUT if _sha256(name) == sha256), None)


@functools.cache
def _sha256(name: str) -> str:
    return text_hash(read_text("text", name))


@functools.lru_cache(maxsize=4)
def _corpus(option: str, corpus: str) -> str:
    """Return the text of a corpus, from the cache of `datasets` if it is there."""
    place, slash, split = corpus.removeprefix(CORPUS).rpartition("/")
    name, slash, config = place.rpartition("/")
    if not (slash and name and config and split):
        raise UserError(f"{option}={corpus}: write {CORPUS}NAME/CONFIG/SPLIT, with the config default if it has none.")
    import datasets  # takes a second

    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, None if config == "default" else config, split=split)
    except Exception as error:  # of the Hub, of files and of configurations: they may be of any type
        reason = (" ".join(str(error).split())[:200] or type(error).__name__).rstrip(".")
        raise UserError(
            f"{option}={corpus} could not be had ({reason}). Without a network it must be in the cache of "
            "datasets: run python -m harness.data with this option where there is one, and copy the results folder "
            "and that cache."
        ) from None
    finally:
        if shown:
            datasets.enable_progress_bars()
    if COLUMN not in rows.column_names:
        raise UserError(f"{option}={corpus} has no column {COLUMN!r}, but {', '.join(rows.column_names)}.")
    texts = rows[COLUMN]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{option}={corpus}: the column {COLUMN!r} does not hold texts.")
    whole = "".join(text if text.endswith("\n") else f"{text}\n" for text in texts)
    if not whole.strip():
        raise UserError(f"{option}={corpus} holds no text.")
    return whole
