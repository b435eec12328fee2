"""Models on the Hub: the commit of a revision, and its files in a folder of the cache."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.utils import httpx  # httpx itself, or from its version 2 on another package

from harness.common.errors import CannotLoad
from harness.models.files import INDEX_FILE, TOKENIZER_FILES

COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
SMALL_FILES = ("config.json", *TOKENIZER_FILES)  # architecture and tokenizer
HUB_ERRORS = (OSError, ValueError, httpx.HTTPError)  # raised by the Hub's client


def resolve_commit(repo: str, revision: str) -> str:
    """Return the commit of a branch, tag or commit, from the Hub or without a network its cache.

    If neither knows it, the revision itself is returned; such a model cannot be loaded.
    """
    if COMMIT_HASH.fullmatch(revision):
        return revision
    try:  # the folder of a snapshot is named by its commit
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["config.json"])).name
    except HUB_ERRORS:
        return revision


def fetch(repo: str, commit: str, *, weights: bool) -> Path:
    """Fetch files of a commit into the cache and return their folder.

    A folder of that name in the working directory is never used.

    Args:
        repo: OWNER/NAME.
        commit: the commit (`resolve_commit`).
        weights: whether to fetch the weights, too, and not only configuration and tokenizer.

    Raises:
        CannotLoad: if `commit` is not a commit.
        HUB_ERRORS: any of these if the files cannot be fetched.
    """
    if not COMMIT_HASH.fullmatch(commit):
        raise CannotLoad(f"{repo}@{commit} can be looked up neither on the Hub nor in its cache on this machine")
    patterns = (*SMALL_FILES, *(("*.safetensors", INDEX_FILE, "adapter_config.json") if weights else ()))
    return Path(snapshot_download(repo, revision=commit, allow_patterns=list(patterns), ignore_patterns="*/*"))
