"""Overrides of a command line: Hydra reads a quoted text back unchanged."""

import random
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from harness.common.errors import UserError
from harness.common.paths import CONF
from harness.experiment.config import RunConfig, register_schema
from harness.experiment.overrides import normalize_arguments, normalize_override, override_word, quote_value
from harness.models.options import ArchitectureConfig, ModelConfig

ODD = ["/a=b", "/a (1)/b", "/a{b}", "a#b", "a,b", "~/x", "/tmp/ä/日本", 'a"b', "a'b", "a\\", "${x}", "a${oc.env:HOME}"]
ODD += ["\\${x}", "[a]", "null", "true", "007", "1e5", "", " a ", "a\nb", "\t", "$", "$${", "a:b", "choice(1,2)"]


def read(*words: str) -> dict:
    """What harness.run would get, by the steps of Hydra that look at a value."""
    config = OmegaConf.structured(RunConfig(ModelConfig(architecture=ArchitectureConfig())))
    for override in map(OverridesParser.create().parse_override, words):
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=False)


def test_hydra_itself_composes_what_was_quoted():
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [override_word("results", "/a=b (1), {ö} #~"), normalize_override("model.revision=83e2010")]
        config = compose("config", overrides=words)
    assert (config.results, config.model.revision) == ("/a=b (1), {ö} #~", "83e2010")


@pytest.mark.parametrize("text", ODD)
def test_a_quoted_text_is_read_back_by_hydra(text):
    values = read(override_word("results", text), override_word("model.path", text))
    assert values["results"] == text
    assert values["model"]["path"] == text


def test_texts_of_any_letters_are_read_back():
    letters = ["a", "\\", '"', "'", "$", "{", "}", "${", "=", ",", " ", "ä", "#", "~", "(", ")", "[", "]", ":", "\n"]
    chance = random.Random(0)
    for _ in range(200):
        text = "".join(chance.choice(letters) for _ in range(chance.randrange(8)))
        assert read(override_word("results", text))["results"] == text, repr(text)


@pytest.mark.parametrize("text", ["results", "/scratch/me/results-2", "../a_b.c", "tiny", "a:b", "@x"])
def test_what_needs_no_quotes_gets_none(text):
    assert quote_value(text) == text


@pytest.mark.parametrize("text", ["83e2010", "0012", "1e3", "1_000", "true", "inf", "16.0"])
@pytest.mark.parametrize("option", ["model.revision", "results", "tracking.group", "model.architecture.family"])
def test_a_text_that_looks_like_a_number_stays_what_was_typed(option, text):
    values = read(normalize_override(f"{option}={text}"))
    for part in option.split("."):
        values = values[part]
    assert values == text


def test_numbers_and_null_stay_numbers_and_null():
    given = ["masks=16", "attn.cutoff=1e3", "attn.evict=true", "model.revision=null", "model.layers=3"]
    given += ["results=runs", "+task.lm_eval.metadata.max=1e3", "task.ruler.names=[1e3]"]
    assert [normalize_override(word) for word in given] == given


def test_values_of_a_multirun_stay_several():
    assert normalize_override("model.revision=83e2010,main") == 'model.revision="83e2010",main'
    assert normalize_override("task.retrieval.text=1e3") == 'task.retrieval.text="1e3"'


def test_flags_may_stand_between_overrides():
    given = ["model=tiny", "-m", "masks=4,16", "--config-dir", "elsewhere", "seed=1"]
    assert normalize_arguments(given) == ["-m", "--config-dir", "elsewhere", "model=tiny", "masks=4,16", "seed=1"]


@pytest.mark.parametrize("text", [t for t in ODD[:7] if t != "a,b"])
def test_a_refusal_names_the_word_that_would_do(text):
    with pytest.raises(UserError, match="could not be read") as error:
        normalize_override(f"model.path={text}")
    (typed,) = shlex.split(str(error.value).rsplit(": ", 1)[1])
    assert read(normalize_override(typed))["model"]["path"] == text
