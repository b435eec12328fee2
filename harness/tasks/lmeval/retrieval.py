"""What harness/tasks/plsh_retrieval.yaml calls: the runner's retrieval prompts and score as lm-eval
wants them."""

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
    """lm-eval's metadata to the samples that the runner makes with the same options. tokenizer: a
    folder or a name of the Hub; context: tokens of each prompt."""
    made = prompts.build(
        prompts.encoder(AutoTokenizer.from_pretrained(tokenizer)),
        samples=samples,
        context=context,
        data_seed=data_seed,
        haystack=haystack,
        text=text,
        depths=depths or Options().depths,
    )
    return {"test": datasets.Dataset.from_list(list(made))}


def process_results(doc: Mapping, results: Sequence[str]) -> dict[str, float]:
    return {"accuracy": float(first_number(results[0]) == doc["value"])}
