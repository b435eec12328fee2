"""The model card of an embedded model."""

from pathlib import Path

from safetensors.torch import load_file

from harness.training.evaluate import Accuracies
from harness.training.recipe import SEED, Cost
from harness.training.train import RANKS, locality

CAVEATS = {
    "tiny": """\
It was trained with a locality regulariser: most training steps showed every head only the pairs
whose ALiBi bias is small. **Methods that drop distant pairs, windows and positional LSH alike, are
favoured by this training.** What they lose here is no forecast for a model that was trained without
it. `tiny-plain` is the model from the same start without the regulariser.""",
    "tiny-plain": """\
It was trained with plain ALiBi alone, on rows of at most 512 tokens: nothing kept its heads from
looking through a large bias, and it needs distant pairs more than `tiny` does, which was trained
to look locally (compare the rows where every head is cut). Windows and positional LSH can follow
it all the same, with more pairs or masks.""",
}

TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

An MPT-architecture language model with ALiBi of {parameters:.2f} million parameters (d_model 128, 2
layers, 8 heads, {vocabulary} tokens), made to test the harness without a download. It reads one
kind of text: retrieval prompts ("needle in a haystack") in the grammar of
`harness/tasks/retrieval/needles.py` and in that of lm-eval's niah_single_1 and niah_multikey_2.

{about}

Do not use it for anything else: it has no command of language, and its perplexity on other text
means nothing. Keys and values of the test prompts are fresh, but every word of them and the grammar
itself were seen in training.

## How it was made

From random weights, with seed {seed}, by

    {command}

{processes} processes of one thread each, gradients averaged; Muon for the matrices, AdamW for
embedding and norms. Loss: cross-entropy of the answers' tokens, and a tenth of that of some other
tokens. Rows of the stage's length and, in part, of a half or a quarter of it. The learning rate
falls linearly to zero over the last part of a phase.

| phase | row length: steps | decay over the last | regulariser | tokens | wall time |
|---|---|---|---|---|---|
{phases}

{total}

## What it can do

Exact ALiBi by stock transformers code in float32, {samples} fresh prompts each; a prompt counts
when greedy decoding gives the whole answer and then the end token. lm-eval's lengths include its
128 tokens of generation.

| prompts | length (tokens) | exact match |
|---|---|---|
{accuracies}
"""


def write(folder: Path, command: str, costs: list[Cost], evaluation: Accuracies) -> None:
    """Write the model card README.md.

    Args:
        folder: folder of the model, with its name.
        command: the command of the training.
        costs: costs of its phases.
        evaluation: its accuracies.
    """
    phases = []
    for cost in costs:
        phase = cost.phase
        stages = ", ".join(f"{stage.length}: {stage.steps}" for stage in phase.stages)
        decay = f"{phase.decay:.0%} of steps" if phase.decay else "none"
        regulariser = locality() if phase.local else "none"
        cost_text = f"{cost.tokens / 1e6:.1f} M | {cost.seconds / 60:.1f} min"
        phases.append(f"| {phase.name} | {stages} | {decay} | {regulariser} | {cost_text} |")
    tokens = sum(cost.tokens for cost in costs) / 1e6
    minutes = sum(cost.seconds for cost in costs) / 60
    weights = load_file(folder / "model.safetensors")
    text = TEMPLATE.format(
        name=folder.name,
        about=CAVEATS[folder.name],
        parameters=sum(w.numel() for w in weights.values()) / 1e6,
        vocabulary=len(weights["transformer.wte.weight"]),
        seed=SEED,
        command=command,
        processes=RANKS,
        phases="\n".join(phases),
        total=f"In all {tokens:.1f} million tokens, {minutes:.0f} minutes.",
        samples=evaluation.samples,
        accuracies="\n".join(f"| {kind} | {length} | {share:.3f} |" for kind, length, share in evaluation.table),
    )
    (folder / "README.md").write_text(text)
