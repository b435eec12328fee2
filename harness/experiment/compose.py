"""Compose a configuration inside another program and leave that program's Hydra untouched."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer

from harness.common.errors import UserError
from harness.common.paths import CONF
from harness.experiment.config import GROUPS, register_schema
from harness.experiment.mistakes import explain
from harness.experiment.overrides import normalize_override, quote_value

SCHEMA_FILE = "schema.yaml"  # the entry that `register_schema` adds to Hydra's store


def option_words(options: Mapping[str, object]) -> list[str]:
    """Return Python values as overrides of the command line: masks=16, attn="plsh", dtype=None.

    A mapping stands for the options of a group (``attn={"name": "plsh", "weights": "rb"}``) or for
    several tasks with their options (``task={"ruler": {"names": ["ruler_vt"]}}``).
    """
    words = []
    for name, value in options.items():
        if name == "task" and isinstance(value, Mapping):
            words.append(f"task={_value_text(list(value))}")
            for task, task_options in value.items():
                words += [f"task.{task}.{key}={_value_text(item)}" for key, item in (task_options or {}).items()]
        elif name in GROUPS and isinstance(value, Mapping):
            words += [f"{name}={_value_text(value['name'])}"] if "name" in value else []
            words += [f"{name}.{key}={_value_text(item)}" for key, item in value.items() if key != "name"]
        else:
            words.append(f"{name}={_value_text(value)}")
    return words


def compose_config(words: Sequence[str]) -> DictConfig:
    """Return the configuration that `python -m harness.run` composes from these overrides.

    Raises:
        UserError: with the message that the command would print.
    """
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word} is a flag of the command line, and no option: leave it out.")
    with _isolated_hydra():
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose("config", overrides=[normalize_override(word) for word in words])
                OmegaConf.resolve(config)  # interpolations may give values of the wrong type
                return config
        except UserError:
            raise
        except Exception as error:  # of Hydra and its libraries, which the words have caused
            raise UserError(explain(error, list(words))) from None


@contextlib.contextmanager
def _isolated_hydra() -> Iterator[None]:
    """Start from an uninitialized Hydra with our schema; on exit restore the caller's state."""
    store = ConfigStore.instance().repo
    schema, resolvers = store.get(SCHEMA_FILE), dict(BaseContainer._resolvers)
    singletons = {kind: Singleton._instances.pop(kind, None) for kind in (GlobalHydra, VersionBase)}
    register_schema()
    try:
        yield
    finally:
        for kind, instance in singletons.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance
        store.pop(SCHEMA_FILE, None)
        if schema is not None:
            store[SCHEMA_FILE] = schema
        BaseContainer._resolvers = resolvers


def _value_text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{quote_value(str(key))}:{_value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value_text, value)) + "]"
    return quote_value(str(value))
