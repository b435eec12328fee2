"""Keep keys, tokens and passwords out of records, logs, W&B and the console: one filter for all texts
that a command writes.

A secret is a text in the form of a known kind of key; the value of an environment variable that is
named like a key; the value of a variable that a command line interpolates by oc.env; and a value that
a command line gives to a name like a key's.
"""

import functools
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

Forms = tuple[tuple[str, str], ...]  # a text, and the name that stands for it

MIN_LENGTH = 8  # characters; a shorter value is a setting, such as true or a number
# a part of a name between _, - and . that makes it the name of a secret: by its end, or as a whole
ENDS = "KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|CREDENTIALS"
WORDS = "PASS|PWD|PAT|AUTH|COOKIE|DSN"
NAME = re.compile(rf"(?:.*[_.-])?(?:[A-Z0-9]*(?:{ENDS})|{WORDS})[0-9]*(?:[_.-].*)?", re.IGNORECASE | re.DOTALL)
# names of settings that look like names of keys
SETTING = re.compile(r".*(?:bos|eos|pad|unk|sep|cls|mask|special|new|max|min|num|n)_tokens?", re.IGNORECASE)
# variables that are no secrets, whatever their names, and whoever interpolates them
PUBLIC = re.compile("PWD|OLDPWD|HOME|USER|LOGNAME|HOSTNAME|SHELL|LANG|SSH_AUTH_SOCK|SLURM_.*|WANDB_(?!API_KEY).*")

# kind -> a key of it; where there is a group, the group alone is the key
FORMATS = {
    "Hugging Face token": r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "W&B key": r"(?<![A-Za-z0-9])(?:wandb_v1_[A-Za-z0-9_]{20,}|local-[0-9a-f]{40})(?![A-Za-z0-9])",
    "GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "GitLab token": r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}",
    "AWS key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "AWS secret": r"(?i:aws_?secret_?(?:access_?)?key)\W{1,5}([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])",
    "API key": r"(?<![A-Za-z0-9-])sk-[A-Za-z0-9_-]{20,}",
    "Google key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    "Slack token": r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "JSON web token": r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+",
    "bearer token": r"(?i:bearer)[ :]+([A-Za-z0-9._~+/-]{16,}=*)",
    "password": r"(?<=://)[^/\s:@'\"]*:([^/\s@'\"]+)(?=@)",
    # forty digits of hexadecimal are a commit elsewhere
    "key": r"(?i:wandb|api|access|secret)[_-]?(?i:api)?[_-]?(?i:key|token)\W{1,5}([0-9a-f]{40})(?![0-9a-f])",
}
KNOWN = [(kind, re.compile(form)) for kind, form in FORMATS.items()]
HINT = re.compile("hf_|org_|wandb|local-|gh[pousr]_|pat|AKIA|ASIA|key|token|sk-|AIza|xox|eyJ|bearer|://", re.IGNORECASE)
INTERPOLATED = re.compile(r"oc\.env\s*:\s*['\"]?([^,}'\"\s$]+)")
ASSIGNED = re.compile(r"([^\s=,{}]+)=([^,\s]+)")  # as in --model_args pretrained=FOLDER,token=X

_interpolated: set[str] = set()  # names of variables
_assigned: dict[str, str] = {}  # value -> name


def learn(words: Iterable[str]) -> None:
    """Take note of the secrets that words of a command line hold: variables that they interpolate,
    and values of names like keys'."""
    for word in words:
        _interpolated.update(INTERPOLATED.findall(word))
        name, _, value = word.partition("=")
        for found in ((name, value), (name, value.strip("'\"")), *ASSIGNED.findall(word)):
            learn_value(*found)


def learn_value(name: str, value: object) -> None:
    """Take note of the secrets in the value of an option."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            learn_value(str(inner), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            learn_value(name, item)
    elif isinstance(value, str) and is_secret_name(name) and "${" not in value and _is_secret(value):
        _assigned[value] = name.rpartition(".")[2]


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a name is one of a key's, such as DB_PASS or wandb_api_key."""
    return not PUBLIC.fullmatch(name) and not SETTING.fullmatch(name) and NAME.fullmatch(name) is not None


def without_secrets(text: str) -> str:
    """Return the text with each secret replaced by the name of its variable or its kind, as
    <HF_TOKEN>."""
    return _filtered(text, _forms())


def without_secrets_in(value: Any) -> Any:
    """Return a value of JSON whose texts, the names in its mappings included, hold no secrets."""
    return _filtered_in(value, _forms())


def _filtered(text: str, forms: Forms) -> str:
    for form, name in forms:
        if form in text:
            text = text.replace(form, f"<{name}>")
    if HINT.search(text):
        for kind, key in KNOWN:
            text = key.sub(functools.partial(_named, kind), text)
    return text


def _filtered_in(value: Any, forms: Forms) -> Any:
    if isinstance(value, str):
        return _filtered(value, forms)
    if isinstance(value, Mapping):
        return {_filtered_in(name, forms): _filtered_in(inner, forms) for name, inner in value.items()}
    return [_filtered_in(inner, forms) for inner in value] if isinstance(value, (list, tuple)) else value


def _named(kind: str, found: re.Match) -> str:
    if not found.re.groups:
        return f"<{kind}>"
    start, end = (place - found.start() for place in found.span(1))
    return f"{found[0][:start]}<{kind}>{found[0][end:]}"


def _forms() -> Forms:
    """The known secrets in all forms in which a text may have them, the longest first."""
    names = (name for name in os.environ if name in _interpolated or is_secret_name(name))
    variables = tuple((name, os.environ[name]) for name in names if not PUBLIC.fullmatch(name))
    return _sorted_forms(variables, tuple(_assigned.items()))


@functools.lru_cache(maxsize=8)
def _sorted_forms(variables: tuple[tuple[str, str], ...], assigned: tuple[tuple[str, str], ...]) -> Forms:
    named = dict(assigned) | {value: name for name, value in variables if _is_secret(value)}
    forms = {form: name for value, name in named.items() for form in _forms_of(value)}
    return tuple(sorted(forms.items(), key=lambda item: -len(item[0])))


def _is_secret(value: str) -> bool:
    """Whether a value is long enough, and no name of a file: those are not secret."""
    return len(value.strip()) >= MIN_LENGTH and not (value[:1] in "/~." and os.path.exists(os.path.expanduser(value)))


def _forms_of(value: str) -> set[str]:
    """A text as it is, as a string of JSON, of Python, of Hydra, of a shell and in an address."""
    forms = {value, value.strip(), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    forms |= {repr(value)[1:-1], value.replace("'", "\\'"), value.replace('"', '\\"'), ascii(value)[1:-1]}
    forms |= {quote(value), quote(value, safe=""), quote_plus(value)}
    quoted = shlex.quote(value)
    forms.add(quoted[1:-1] if quoted != value else quoted)
    return forms
