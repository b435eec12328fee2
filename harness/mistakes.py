"""Turn what Hydra and OmegaConf say of a wrong command line into two sentences with the nearest right word."""

import re

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from harness.config import CONF
from harness.errors import nearest


def explain(error: Exception, arguments: list[str]) -> str:
    """One or two sentences that say what to change."""
    message = _whole_message(error)
    if found := re.search(r"Could not find '([\w/-]+)/([^'/]+)'", message):
        return f"There is no {found[1]}={found[2]}.{nearest(found[2], _options(found[1]))}"
    if found := re.search(r"Key '([^']+)' (?:is )?not in", message):
        word = next((_name(a) for a in arguments if _name(a).split(".")[-1] == found[1]), found[1])
        return f"There is no option {word!r}.{nearest(word, known_names())}"
    if found := re.search(r"Could not override '([^']+)'", message):
        return f"There is no option {found[1]!r}.{nearest(found[1], known_names())}"
    first = next((line for line in message.splitlines() if line.strip()), type(error).__name__)
    if found := re.search(r"full_key: (\S+)", message):
        return f"{found[1]}: {first.strip()}."
    if "mismatched input" in message or "no viable alternative" in message or "token recognition" in message:
        return f"An argument could not be read as key=value ({first.strip()}): quote values that hold commas, spaces or =."
    return first.strip()


def known_names() -> list[str]:
    """Every option that can be set, dotted, and every group."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config")
    return [*_flatten(config), "model", "attn", "kernel", "task"]


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
