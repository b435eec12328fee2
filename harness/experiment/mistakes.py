"""Turn errors of Hydra and OmegaConf into two sentences with the nearest valid name."""

import re
import shlex

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.common.errors import UserError, nearest
from harness.common.paths import CONF
from harness.experiment import overrides


def explain(error: Exception, arguments: list[str]) -> str:
    """Return one or two sentences that tell the user how to correct the command line."""
    message = _message_chain(error)
    if "'hydra/launcher/submitit_" in message:
        return "This launcher needs the package hydra-submitit-launcher: pip install -e '.[slurm]' adds it."
    if match := re.search(r"Could not (?:find|load) '([\w/-]+)/([^'/]+)'", message):
        return f"There is no {match[1]}={match[2]}.{nearest(match[2], _group_names(match[1]))}"
    if match := re.search(r"Key '([^']+)' (?:is )?not in", message):
        given = [name for name in map(_name, arguments) if name.split(".")[-1] == match[1]]
        if not given and f"full_key: attn.{match[1]}" in message:
            return (
                f"A file in conf/attn sets {match[1]!r}, an option that no attention method has: is the method in "
                "harness/attentions/registry.py?"
            )
        name = given[0] if given else match[1]
        return f"There is no option {name!r}.{nearest(name, option_names())}"
    if match := re.search(r"Could not override '([^']+)'", message):
        return f"There is no option {match[1]!r}.{nearest(match[1], option_names())}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if key := re.search(r"full_key: (\S+)", message):
        if "is not Optional" in message:
            return f"{key[1]} needs a value: it cannot be null."
        reason = next((line for line in lines if "could not be converted" in line or "not a" in line), lines[0])
        return f"{key[1]}: {reason.rstrip('.')}."
    if match := re.search(r"Ambiguous value for argument '(.+)'", message):
        single = shlex.quote(overrides.override_word(*match[1].split("=", 1)))
        return f"{lines[0]}: several values need -m (one cell each), a list is written key=[a,b], one value {single}."
    if isinstance(error, HydraException | OmegaConfBaseException) and lines:
        return lines[0]
    return f"These options cannot be composed: {type(error).__name__}{': ' * bool(lines)}{''.join(lines[:1])}"


FLAGS: tuple[str, ...] = (
    "--help",
    "--hydra-help",
    "--version",
    "--cfg",
    "--resolve",
    "--package",
    "--run",
    "--multirun",
    "--info",
)
FLAGS += ("--config-path", "--config-name", "--config-dir", "--experimental-rerun")
FLAGS += ("-h", "-c", "-p", "-r", "-m", "-cp", "-cn", "-cd", "-i")
MODES = {"--run": "run", "-r": "run", "--multirun": "multirun", "-m": "multirun"}
MODES |= {"--cfg": "cfg", "-c": "cfg", "--info": "info", "-i": "info"}


def refuse_unknown_flags(arguments: list[str]) -> None:
    """Refuse flags that Hydra would answer with pages of usage or a traceback.

    Raises:
        UserError: for an unknown flag, or flags that exclude each other.
    """
    flags = [a.split("=", 1)[0] for a in arguments if a.startswith("-")]
    for flag in flags:
        if flag not in FLAGS:
            raise UserError(f"The flag {flag} is not known.{nearest(flag, FLAGS)} See python -m harness.run --help.")
    modes = [flag for flag in dict.fromkeys(flags) if flag in MODES]
    if len({MODES[flag] for flag in modes}) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other: leave out all but one.")
    if "--resolve" in flags and not {"--cfg", "-c", "--help", "-h"} & set(flags):
        raise UserError("--resolve goes with --cfg job, which prints the configuration.")


def option_names() -> list[str]:
    """Return the dotted names of all options, and the names of the groups."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config")
    return [*_flatten(config), "model", "attn", "kernel", "task", "tracking"]


def _flatten(config: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for key in map(str, config):
        value = None if OmegaConf.is_missing(config, key) else config[key]
        names += _flatten(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [f"{prefix}{key}"]
    return names


def _group_names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def _name(argument: str) -> str:
    return argument.split("=", 1)[0].lstrip("+~")


def _message_chain(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)
