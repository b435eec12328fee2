"""A configuration composed from words of the command line within another program, whose own Hydra
stays as it is."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from harness.common.errors import UserError
from harness.common.paths import CONF
from harness.experiment.config import GROUPS, register
from harness.experiment.mistakes import explain
from harness.experiment.overrides import as_typed, quoted

SCHEMA = "schema.yaml"  # what `register` puts into Hydra's store


def words_of(options: Mapping[str, object]) -> list[str]:
    """Python values as words of the command line: masks=16, attn="plsh", dtype=None, device="cpu".

    A mapping stands for the options of a group (``attn={"name": "plsh", "weights": "rb"}``), and
    for several tasks with their options (``task={"ruler": {"names": ["ruler_vt"]}}``).
    """
    words = []
    for name, value in options.items():
        if name == "task" and isinstance(value, Mapping):
            words.append(f"task={_text(list(value))}")
            for task, own in value.items():
                words += [f"task.{task}.{key}={_text(one)}" for key, one in (own or {}).items()]
        elif name in GROUPS and isinstance(value, Mapping):
            words += [f"{name}={_text(value['name'])}"] if "name" in value else []
            words += [f"{name}.{key}={_text(one)}" for key, one in value.items() if key != "name"]
        else:
            words.append(f"{name}={_text(value)}")
    return words


def composed(words: Sequence[str]) -> DictConfig:
    """What `python -m harness.run` composes from these words. Raises UserError with the sentence
    that the command would print."""
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word} is a flag of the command line, and no option: leave it out.")
    with _own_hydra():
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                return compose("config", overrides=[as_typed(word) for word in words])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error, list(words))) from None


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra with our schema and as if nobody had initialized it; afterwards as the program around
    has left it."""
    store = ConfigStore.instance().repo
    schema, resolvers = store.get(SCHEMA), dict(BaseContainer._resolvers)
    objects = {kind: Singleton._instances.pop(kind, None) for kind in (GlobalHydra, VersionBase)}
    register()
    try:
        yield
    finally:
        for kind, before in objects.items():
            Singleton._instances.pop(kind, None)
            if before is not None:
                Singleton._instances[kind] = before
        store.pop(SCHEMA, None)
        if schema is not None:
            store[SCHEMA] = schema
        BaseContainer._resolvers = resolvers


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{quoted(str(key))}:{_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_text, value)) + "]"
    return quoted(str(value))
