"""Turn what Hydra and OmegaConf say of a wrong command line into two sentences with the nearest
right word."""

import re
import shlex

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from harness.common.errors import UserError, nearest
from harness.common.paths import CONF
from harness.experiment import overrides


def explain(error: Exception, arguments: list[str]) -> str:
    """One or two sentences that say what to change."""
    message = _whole_message(error)
    if "'hydra/launcher/submitit_" in message:
        return "This launcher needs the package hydra-submitit-launcher: pip install -e '.[slurm]' adds it."
    if found := re.search(r"Could not (?:find|load) '([\w/-]+)/([^'/]+)'", message):
        return f"There is no {found[1]}={found[2]}.{nearest(found[2], _options(found[1]))}"
    if found := re.search(r"Key '([^']+)' (?:is )?not in", message):
        word = next((_name(a) for a in arguments if _name(a).split(".")[-1] == found[1]), found[1])
        return f"There is no option {word!r}.{nearest(word, known_names())}"
    if found := re.search(r"Could not override '([^']+)'", message):
        return f"There is no option {found[1]!r}.{nearest(found[1], known_names())}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if key := re.search(r"full_key: (\S+)", message):
        if "is not Optional" in message:
            return f"{key[1]} needs a value, and null is none."
        reason = next((line for line in lines if "could not be converted" in line or "not a" in line), lines[0])
        return f"{key[1]}: {reason.rstrip('.')}."
    if found := re.search(r"Ambiguous value for argument '(.+)'", message):
        one = shlex.quote(overrides.word(*found[1].split("=", 1)))
        return f"{lines[0]}: several values need -m (one cell each), a list is written key=[a,b], one value {one}."
    return lines[0] if lines else type(error).__name__


FLAGS = ("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info")
FLAGS += ("--config-path", "--config-name", "--config-dir", "--experimental-rerun")
FLAGS += ("-h", "-c", "-p", "-r", "-m", "-cp", "-cn", "-cd", "-i")
MODES = {"--run": "run", "-r": "run", "--multirun": "multirun", "-m": "multirun"}
MODES |= {"--cfg": "cfg", "-c": "cfg", "--info": "info", "-i": "info"}


def refuse_unknown_flags(arguments: list[str]) -> None:
    """UserError for a flag that Hydra does not have, or that another contradicts: its own answers
    are pages of usage and tracebacks."""
    given = [a.split("=", 1)[0] for a in arguments if a.startswith("-")]
    for flag in given:
        if flag not in FLAGS:
            raise UserError(f"The flag {flag} is not known.{nearest(flag, FLAGS)} See python -m harness.run --help.")
    modes = [flag for flag in dict.fromkeys(given) if flag in MODES]
    if len({MODES[flag] for flag in modes}) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other: leave out all but one.")
    if "--resolve" in given and not {"--cfg", "-c", "--help", "-h"} & set(given):
        raise UserError("--resolve goes with --cfg job, which prints the configuration.")


def known_names() -> list[str]:
    """Every option that can be set, dotted, and every group."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config")
    return [*_flatten(config), "model", "attn", "kernel", "task", "tracking"]


def _flatten(config: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        value = None if OmegaConf.is_missing(config, key) else config[key]
        names += _flatten(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [f"{prefix}{key}"]
    return names


def _options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def _name(argument: str) -> str:
    return argument.split("=", 1)[0].lstrip("+~")


def _whole_message(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)
