"""A model on the Hub: the commit that its revision stands for, and its files in a folder of the
cache."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.utils import httpx  # the package of that name, from its version 2 on another

from harness.common.errors import CannotLoad
from harness.models.files import INDEX, TOKENIZER

COMMIT = re.compile(r"[0-9a-f]{40}")
SMALL = ("config.json", *TOKENIZER)  # what tells a model's shape and makes its tokenizer
UNREACHED = (OSError, ValueError, httpx.HTTPError)  # what the Hub's client raises


def commit_of(repo: str, revision: str) -> str:
    """The commit that a branch, a tag or a commit stands for: the Hub's word, or without a network
    the cache's. The revision itself where neither can say; such a model cannot be loaded."""
    if COMMIT.fullmatch(revision):
        return revision
    try:  # the folder of a snapshot is named by its commit
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["config.json"])).name
    except UNREACHED:
        return revision


def fetch(repo: str, commit: str, *, weights: bool) -> Path:
    """The folder of the cache with these files of a commit: the small ones, and with `weights` the
    safetensors. A folder of the working directory by that name is never looked at. Raises
    CannotLoad for what is no commit, and one of UNREACHED where the files cannot be had."""
    if not COMMIT.fullmatch(commit):
        raise CannotLoad(f"{repo}@{commit} can be looked up neither on the Hub nor in its cache on this machine")
    wanted = (*SMALL, *(("*.safetensors", INDEX, "adapter_config.json") if weights else ()))
    return Path(snapshot_download(repo, revision=commit, allow_patterns=list(wanted), ignore_patterns="*/*"))
