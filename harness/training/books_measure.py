"""What tiny-books is worth: bits per byte of novels it has not read, under exact ALiBi and under
what approximates it.

Everything goes through the harness's own attention, as any model does.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.attentions.alibi import EXACT
from harness.attentions.base import Attention
from harness.attentions.plsh import Plsh
from harness.attentions.registry import references
from harness.cell import Cell
from harness.common import stats
from harness.models.load import LoadedModel, load_model
from harness.models.options import ModelConfig
from harness.models.spec import ModelSpec, resolve_model
from harness.training import bits, books
from harness.training.books_train import stream
from kernels import Weights

CONTEXTS = (256, 512, 1024, 2048)
CONTEXT, MASKS, DRAWS, CHUNKS = 1024, 16, 8, 160


def measure(folder: Path, texts: dict[books.Book, str], log: Callable[[str], None], chunks: int = CHUNKS) -> dict:
    """All figures of the card, for the model in `folder`, as plain JSON."""
    spec = resolve_model(ModelConfig(name=folder.name, path=str(folder)), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    exact = _weights(Cell(spec, EXACT, "auto", CONTEXT, 0, 1, 0), 0)
    sizes = bits.byte_counts(loaded.tokenizer)
    read = [text for book, text in texts.items() if book.part == "train"]
    trained = stream(loaded.tokenizer, read)
    novels = {}
    for book, text in texts.items():
        if book.part == "train":
            continue
        ids = stream(loaded.tokenizer, [text])
        size = len(text.encode())
        assert int(sizes[ids].sum()) == size, "the tokens do not stand for the bytes of the text"
        plain = bits.compressed(text.encode(), "".join(read).encode())
        plain["single tokens, by their share in the training texts"] = bits.unigram(ids[1:], trained, sizes)
        model = {}
        for context in CONTEXTS:
            nats = bits.sliding(loaded, ids, exact, context=context)
            model[str(context)] = float(nats.double().sum()) / math.log(2) / size
            log(f"{book.title}, context {context}: {model[str(context)]:.4f} bits per byte")
        novels[book.part] = {"title": book.title, "bytes": size, "tokens": len(ids) - 1, "model": model, "plain": plain}
        if book.part == "test":
            compared = compare(spec, loaded, ids, sizes, chunks, log)
    return {"novels": novels, "attentions": compared, "setup": {"context": CONTEXT, "draws": DRAWS, "chunks": chunks}}


def compare(
    spec: ModelSpec, loaded: LoadedModel, ids: Tensor, sizes: Tensor, chunks: int, log: Callable[[str], None]
) -> list[dict]:
    """Exact ALiBi, both weights of Positional LSH and both windows of equal cost on the same chunks
    of a text.

    A chunk is CONTEXT tokens, spread evenly over the text; its value is the bits per byte of its
    second half. Chunk i is read under draw i mod DRAWS of the masks. Intervals and paired
    differences are those of `harness.common.stats`.
    """
    last = CONTEXT // 2
    ends = [round(at) for at in torch.linspace(CONTEXT, len(ids) - 1, chunks).tolist()]
    windows = torch.stack([ids[end - CONTEXT : end + 1] for end in ends])
    size = sizes[windows[:, -last:]].sum(1)
    cells = [Cell(spec, a, "auto", CONTEXT, 0, DRAWS if a.random else 1, 0) for a in attentions(spec)]
    rows: list[dict] = []
    exact: dict[int, float] = {}
    for cell in cells:
        draw_of = {i: i % cell.draws for i in range(chunks)}
        found = torch.empty(chunks, dtype=torch.float64)
        for draw in range(cell.draws):
            nats = bits.nats(loaded, windows[draw :: cell.draws], _weights(cell, draw), last=last)
            found[draw :: cell.draws] = nats.double().sum(1) / math.log(2) / size[draw :: cell.draws]
        values = dict(enumerate(found.tolist()))
        exact = exact or values
        value = stats.mean(
            list(values.values()), list(draw_of.values()), clustered=cell.draws > 1, unit="bits/byte", least=0.0
        )
        change = stats.paired_difference(values, exact, draw_of, clustered=cell.draws > 1)
        rows.append(
            {
                "label": cell.attention.label,
                "pairs_per_row": cell.cost(),
                "bits_per_byte": value.as_dict(),
                "minus_exact": change.as_dict() if change and cell is not cells[0] else None,
            }
        )
        log(f"{cell.attention.label}: {value.value:.4f} bits per byte")
    return rows


def _weights(cell: Cell, draw: int) -> Sequence[Weights]:
    """Of an attention that is not the checkpoint's own."""
    weights = cell.weights(draw)
    assert weights is not None
    return weights


def attentions(spec: ModelSpec) -> list[Attention]:
    """Exact ALiBi first, then both weights of Positional LSH, then the windows of equal cost."""
    random = [Plsh(MASKS, "gamma", weights) for weights in ("count", "rb")]
    return [EXACT, *random, *references(random[0], spec, CONTEXT).values()]
