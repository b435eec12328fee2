"""The model card of tiny-code, and its tables for docs/."""

from pathlib import Path

from safetensors.torch import load_file

from harness.analysis.table import interval, pairs, signed
from harness.attentions.sliding import Sliding
from harness.common.stats import Difference, Metric
from harness.common.table import Table
from harness.training import net as nets
from harness.training import packages
from harness.training.code_measure import SLIDING

NAME = "tiny-code"
# what a text must need of its context to tell attentions apart: bits per byte
GOALS = (
    ("2048 tokens against 256", "contexts", -0.10),
    ("2048 tokens against 1024", "last_doubling", -0.02),
    ("sliding window of 128 tokens against exact ALiBi", "attentions", 0.05),
)
LOCAL = Sliding(SLIDING).label  # the attention of the last of them

TEMPLATE = """---
license: apache-2.0
language: code
library_name: transformers
pipeline_tag: text-generation
---

# {name}

An MPT-architecture language model with ALiBi of {parameters:.2f} million parameters (d_model {d_model},
{layers} layers, {heads} heads, {vocabulary} tokens by byte-pair encoding), trained on Python source of
permissively licensed packages, where identifiers, imports and signatures come back hundreds of lines
later. Any UTF-8 text can be read: what was not merged is spelt in bytes.

It was trained with plain ALiBi: no regulariser made its heads look locally, none kept them from it,
and no method was seen in training. {far} of its {heads} slopes are below 2^-6. No prompts of the
retrieval task were mixed in: it cannot do that task.

**{verdict}** The tables below have the figures, which are no forecast for a larger model.

## Texts

The Python files of {packages} source distributions in the package index, without tests, documentation,
copies of other packages, and files above {largest} kB: {megabytes:.1f} MB for training. pip fetches them by
version and hash. Hashes of texts: sha256 over all files in order of paths, each followed by a zero
byte.

| package | version | licence | used for | sha256 of the texts |
|---|---|---|---|---|
{texts}

## How it was made

From random weights, with seed {seed}, {commit}, by

    python -m harness.training --only {name} --packages FOLDER --download --steps {steps} --decay {decay}

The tokens were learnt from the training packages alone, {stream:.2f} million tokens of {bytes_per_token:.2f} bytes.
{processes} processes of one thread each with averaged gradients, bfloat16 autocast; Muon for the matrices,
AdamW for embedding and norms; after a short warm-up the rates are constant, and fall linearly to zero over
the last {decay:.0%} of the steps. {stages}, of both
processes together. In all {tokens:.1f} million tokens, {passes:.2f} passes over the texts, {cpu:.0f} minutes of CPU
in {wall:.0f} minutes ({device}, torch {torch}). Cross-entropy over the last steps: {loss:.3f} nats per token.

{curve}

## Does it need its context?

{tables}
"""

NOTES = """\
Exact ALiBi in float32 on {passages} passages of {passage} tokens, spread evenly over the {tokens} tokens of
the test packages (the file `code.txt` of the embedded texts). Context C means: windows of C tokens moved by
C/2, of which the second half counts, so that each token is predicted once from C/2 to C tokens before it.
Differences are paired by passage. Positional LSH: {draws} independent draws of the masks, passage i read
under draw i mod {draws}. Intervals are 95 %: over passages for a deterministic attention, over the draws'
means for Positional LSH (differences: never narrower than over passages).

The gain is that of a context of {contexts[1]} over {contexts[0]} tokens. "Bits per byte" is a class's part of
the whole gain. An identifier's tokens share the distance of its first token; Python's keywords and what is
no word are "none"."""


def write(folder: Path, record: dict, figures: dict) -> None:
    """Write the model card README.md.

    Args:
        folder: folder of the model.
        record: the result of `text_model.read_record`.
        figures: the result of `code_measure.measure`.
    """
    weights = load_file(folder / "model.safetensors")
    shape = record["shape"]
    stages = [
        f"{s['steps']} steps of {record['processes'] * s['tokens'] // s['length']} rows of {s['length']} tokens"
        for s in record["stages"]
    ]
    far = int((nets.slopes(shape["heads"]) < 2**-6).sum())
    text = TEMPLATE.format(
        name=folder.name,
        parameters=sum(w.numel() for w in weights.values()) / 1e6,
        vocabulary=len(weights["transformer.wte.weight"]),
        far=far,
        packages=len(packages.PACKAGES),
        largest=packages.LARGEST_FILE // 1000,
        megabytes=record["stream_bytes"] / 1e6,
        texts="\n".join(
            f"| {p.name} | {p.version} | {p.licence} | {p.part} | `{record['texts'][p.name]}` |"
            for p in packages.PACKAGES
        ),
        seed=record["seed"],
        commit="at commit " + (record["commit"] or "unknown")[:12] + (" with changes" if record["dirty"] else ""),
        steps=",".join(f"{s['length']}={s['steps']}" for s in record["stages"]),
        stream=record["stream_tokens"] / 1e6,
        bytes_per_token=record["stream_bytes"] / record["stream_tokens"],
        processes=record["processes"],
        decay=record["decay"],
        stages=", then ".join(stages),
        tokens=record["tokens"] / 1e6,
        passes=record["tokens"] / record["stream_tokens"],
        cpu=record["seconds"]["cpu"] / 60,
        wall=record["seconds"]["wall"] / 60,
        device=record["device"],
        torch=record["packages"]["torch"],
        loss=record["loss_nats_per_token"],
        verdict=verdict(record, figures),
        curve=curve(record).markdown().rstrip(),
        tables=markdown(figures),
        **shape,
    )
    (folder / "README.md").write_text(text)


def curve(record: dict) -> Table:
    """Return the table of probes in training, at most a dozen of them."""
    probes = record["probes"]
    chosen = probes[:: -(-len(probes) // 12) or 1]
    if probes and chosen[-1] is not probes[-1]:
        chosen.append(probes[-1])
    ranges = [name for name in probes[0] if name not in ("step", "tokens")] if probes else []
    rows = [[str(p["step"]), f"{p['tokens'] / 1e6:.1f}", *(f"{p[name]:.3f}" for name in ranges)] for p in chosen]
    columns = ["step", "million tokens", *(f"position {name}" for name in ranges)]
    return Table("Bits per byte of validation packages in training, by position in the row", columns, rows, [])


def verdict(record: dict, figures: dict) -> str:
    """Return a sentence on how much the model needs its context, after how much training."""
    reached = sum(row[-1] == "yes" for row in goals(figures))
    effort = f"{record['tokens'] / 1e6:.1f} million tokens and {record['seconds']['cpu'] / 60:.0f} minutes of CPU"
    if reached == len(GOALS):
        return f"After {effort} its text needs its context, by all {reached} measures that were set."
    return (
        f"After {effort} it has reached {reached} of the {len(GOALS)} goals that were set for its need of context: it "
        "is the state of a training that can go on, and a small difference of attentions on it proves little."
    )


def goals(figures: dict) -> list[list[str]]:
    """Return the rows of what was wanted and what was reached."""
    rows = []
    for name, key, goal in GOALS:
        found = figures[key]
        if key == "contexts":
            found = found[-1]["difference"]
        elif key == "attentions":
            found = next(row for row in found if row["label"] == LOCAL)["difference"]
        reached = found["value"] <= goal if goal < 0 else found["value"] >= goal
        wanted = f"{'at most' if goal < 0 else 'at least'} {goal:+.2f}"
        rows.append([name, wanted, signed(Difference(**found)), "yes" if reached else "no"])
    return rows


def markdown(figures: dict) -> str:
    """Return the tables and notes of the result of `code_measure.measure`."""
    tables = [
        Table(f"{NAME}, bits per byte of unseen packages", ["", "wanted", "measured", "reached"], goals(figures), [])
    ]
    base = figures["setup"]["contexts"][0]
    rows = [
        [f"{row['context']} tokens", _interval(row["bits_per_byte"]), _signed(row["difference"])]
        for row in figures["contexts"]
    ]
    title = f"{NAME}, bits per byte by context, exact ALiBi"
    tables.append(Table(title, ["context", "bits per byte", f"minus {base} tokens"], rows, []))
    rows = [
        [row["label"], pairs(row["pairs_per_row"]), _interval(row["bits_per_byte"]), _signed(row["difference"])]
        for row in figures["attentions"]
    ]
    title = f"{NAME}, bits per byte at {figures['setup']['contexts'][1]} tokens"
    tables.append(Table(title, ["attention", "pairs per row", "bits per byte", "minus exact"], rows, []))
    for kind, classes in figures["gain"].items():
        rows = [
            [c["distance"], f"{c['tokens']:.1%}", f"{c['bits_per_token']:+.3f}", f"{c['bits_per_byte']:+.4f}"]
            for c in classes
        ]
        columns = ["tokens since the last one", "share of tokens", "gain, bits per token", "gain, bits per byte"]
        tables.append(Table(f"{NAME}, gain of a long context by the last occurrence of {kind}", columns, rows, []))
    return "\n".join(table.markdown() for table in tables) + "\n" + NOTES.format(**figures["setup"])


def _interval(metric: dict) -> str:
    return interval(Metric(**metric))


def _signed(difference: dict | None) -> str:
    return signed(Difference(**difference) if difference else None)
