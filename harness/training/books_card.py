"""The model card of tiny-books, and its tables for README.md."""

from pathlib import Path

from safetensors.torch import load_file

from harness.analysis.table import interval, pairs, signed
from harness.common.stats import Difference, Metric
from harness.common.table import Table
from harness.training import books

NAME = "tiny-books"

TEMPLATE = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}

An MPT-architecture language model with ALiBi of {parameters:.2f} million parameters (d_model {d_model},
{layers} layers, {heads} heads, {vocabulary} tokens by byte-pair encoding), trained on eight novels, so that
perplexity and fidelity on natural text mean something without a download. Any UTF-8 text can be
read: what was not merged is spelt in bytes.

It was trained with plain ALiBi, on rows of {lengths} tokens: no regulariser made its heads
look locally (`tiny` had one), none kept them from it, and no method was seen in training. The tables
below are no forecast for a larger model or for another task.

It writes phrases that hold together for a few words. It cannot do the retrieval task.

## Texts

Novels of Project Gutenberg, in the public domain in the United States. Project Gutenberg's header and
licence are cut off where a file has them, lines end in a line feed, and the text ends in one; the
sha256 is of that. Tables of contents and notes of the transcribers are in.

For training and measuring each paragraph was then made one line with single blanks; a blank line
is left where there were two or more, as between chapters. A model that reads the hard line breaks of
such files learns to place them, and masks and windows that lose the count of the line lose most
there: a format can make most of such a figure. The last table is a warning: the same novel with its
hard line breaks, which this model has never seen.

| novel | author | number | used for | sha256 |
|---|---|---:|---|---|
{texts}

## How it was made

From random weights, with seed {seed}, at commit {commit}, by

    python -m harness.training --only {name} --books FOLDER

where FOLDER holds `train/jane-eyre.txt` and so on, as `harness/training/books.py` names them. The tokens were
learnt from the training novels alone, which are {stream:.2f} million tokens of {bytes_per_token:.2f} bytes.
{processes} processes of one thread each with averaged gradients, bfloat16 autocast; Muon for the matrices,
AdamW for embedding and norms; after a short warm-up the learning rate falls linearly to zero over the last
{decay:.0%} of the steps. {stages}, of both processes together. In all {tokens:.1f} million tokens, {passes:.1f} passes
over the novels, {minutes:.0f} minutes of CPU ({device}, torch {torch}). Cross-entropy over the last steps:
{loss:.3f} nats per token.

## Bits per byte

{tables}

{notes}
"""

NOTES = """\
Exact ALiBi in float32, the whole text from its first byte to its last. Context C means: windows of C
tokens moved by C/2, of which the second half counts, so that each token is predicted once from C/2 to
C tokens before it (fewer at the start of the text). Compressors start from nothing and must learn the
text as they go, the model has read {megabytes:.0f} MB of other novels; xz "after the training texts" is what the
text adds to a file that holds those too.

The tables of attentions are paired: {chunks} chunks of {context} tokens spread evenly over {title}, and
of each the bits per byte of its second half, averaged over chunks. Positional LSH: {draws} independent
draws of the masks, chunk i read under draw i mod {draws}. Intervals are 95 %: over chunks for a deterministic
attention, over the draws' means for Positional LSH (differences: never narrower than over chunks).
"Pairs per row" as in the other tables: of the windows of one length in units of 1/slope (T) and of one
length in tokens (W) each has one that visits as many pairs as the masks without a near field, and one
as with it; the shortest sliding window has the near field alone."""


def write(folder: Path, record: dict, figures: dict) -> None:
    """Write the model card README.md.

    Args:
        folder: folder of the model.
        record: the result of `text_model.read_record`.
        figures: the result of `books_measure.measure`.
    """
    weights = load_file(folder / "model.safetensors")
    sizes = {stage["length"]: stage for stage in record["stages"]}
    ranks = record["processes"]
    stages = [f"{s['steps']} steps of {ranks * s['tokens'] // n} rows of {n} tokens" for n, s in sizes.items()]
    text = TEMPLATE.format(
        name=folder.name,
        parameters=sum(w.numel() for w in weights.values()) / 1e6,
        vocabulary=len(weights["transformer.wte.weight"]),
        lengths=" and then ".join(map(str, sizes)),
        texts="\n".join(
            f"| {b.title} | {b.author} | {b.number} | {b.part} | `{record['texts'][f'{b.part}/{b.file}']}` |"
            for b in books.BOOKS
        ),
        seed=record["seed"],
        commit=(record["commit"] or "unknown")[:12] + (" with changes" if record["dirty"] else ""),
        stream=record["stream_tokens"] / 1e6,
        bytes_per_token=record["stream_bytes"] / record["stream_tokens"],
        decay=record["decay"],
        stages=", then ".join(stages),
        tokens=record["tokens"] / 1e6,
        passes=record["tokens"] / record["stream_tokens"],
        processes=ranks,
        minutes=record["seconds"]["cpu"] / 60,
        device=record["device"],
        torch=record["packages"]["torch"],
        loss=record["loss_nats_per_token"],
        tables=markdown(figures),
        notes=NOTES.format(
            megabytes=record["stream_bytes"] / 1e6, title=figures["novels"]["test"]["title"], **figures["setup"]
        ),
        **record["shape"],
    )
    (folder / "README.md").write_text(text)


def markdown(figures: dict) -> str:
    """Return the tables of bits per byte, from the result of `books_measure.measure`."""
    novels = list(figures["novels"].items())
    columns = ["", *(f"{novel['title']} ({part})" for part, novel in novels)]
    rows = [
        [f"{NAME}, context {context}", *(f"{novel['model'][context]:.3f}" for _, novel in novels)]
        for context in novels[0][1]["model"]
    ]
    rows += [[name, *(f"{novel['plain'][name]:.3f}" for _, novel in novels)] for name in novels[0][1]["plain"]]
    novel_table = Table(f"{NAME}, bits per byte of whole novels", columns, rows, [])
    setup = figures["setup"]
    title = f"{NAME}, bits per byte of {setup['chunks']} chunks, {setup['context']} tokens, "
    tables = [_attention_table(title + form, rows) for form, rows in figures["attentions"].items()]
    return "\n".join(table.markdown() for table in (novel_table, *tables)).rstrip()


def _attention_table(title: str, attentions: list[dict]) -> Table:
    rows = [
        [
            row["label"],
            pairs(row["pairs_per_row"]),
            interval(Metric(**row["bits_per_byte"])),
            signed(row["minus_exact"] and Difference(**row["minus_exact"])),
        ]
        for row in attentions
    ]
    return Table(title, ["attention", "pairs per row", "bits per byte", "minus exact"], rows, [])
