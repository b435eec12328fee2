"""Functions of harness/tasks/plsh_retrieval.yaml: retrieval prompts and score for lm-eval."""

from collections.abc import Mapping, Sequence

import datasets
from transformers import AutoTokenizer

from harness.tasks.retrieval import prompts
from harness.tasks.retrieval.task import Options, first_number


def build(
    *,
    tokenizer: str,
    context: int = 512,
    samples: int = 80,
    data_seed: int = 0,
    haystack: str = "noise",
    text: str | None = None,
    depths: Sequence[float] | None = None,
    **_,
) -> dict[str, datasets.Dataset]:
    """Return the runner's samples for the metadata of lm-eval.

    Args:
        tokenizer: a folder, or a name on the Hub.
        context: tokens of each prompt.
        samples: number of samples.
        data_seed: seed of the samples.
        haystack: kind of haystack, see `harness.tasks.retrieval.task.Options`.
        text: file of the haystack "text".
        depths: depths of the needles; None for the default.
    """
    generated = prompts.make_samples(
        prompts.encoder(AutoTokenizer.from_pretrained(tokenizer)),
        samples=samples,
        context=context,
        data_seed=data_seed,
        haystack=haystack,
        text=text,
        depths=depths or Options().depths,
    )
    return {"test": datasets.Dataset.from_list(list(generated))}


def process_results(doc: Mapping, results: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of one answer, 0 or 1."""
    return {"accuracy": float(first_number(results[0]) == doc["value"])}
