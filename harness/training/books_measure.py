"""The quality of tiny-books: bits per byte of unseen novels under exact ALiBi and approximations.

All figures use the harness's attention, as for any model.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.attentions.alibi import EXACT
from harness.attentions.base import TILE, Attention
from harness.attentions.plsh import Plsh
from harness.attentions.registry import references
from harness.attentions.sliding import Sliding
from harness.cell import Cell
from harness.common import stats
from harness.models.load import LoadedModel, load_model
from harness.models.options import ModelConfig
from harness.models.spec import ModelSpec, resolve_model
from harness.training import bits, books
from harness.training.text_train import stream
from kernels import Weights

CONTEXTS = (256, 512, 1024, 2048)
CONTEXT, MASKS, DRAWS, CHUNKS = 1024, 16, 8, 160


def measure(folder: Path, texts: dict[books.Book, str], log: Callable[[str], None], chunks: int = CHUNKS) -> dict:
    """Return all figures of the model card as JSON.

    Args:
        folder: folder of the model.
        texts: the novels with the hard line breaks of their files, which are read unwrapped; the
            attentions are compared on both forms of the test novel.
        log: prints a line.
        chunks: number of chunks for comparing attentions.
    """
    hard_lines, texts = texts, {book: books.unwrap(text) for book, text in texts.items()}
    spec = resolve_model(ModelConfig(name=folder.name, path=str(folder)), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    exact = _weights(Cell(spec, EXACT, "auto", CONTEXT, 0, 1, 0), 0)
    sizes = bits.byte_counts(loaded.tokenizer)
    train_texts = [text for book, text in texts.items() if book.part == "train"]
    trained = stream(loaded.tokenizer, train_texts)
    novels = {}
    for book, text in texts.items():
        if book.part == "train":
            continue
        ids = stream(loaded.tokenizer, [text])
        size = len(text.encode())
        assert int(sizes[ids].sum()) == size, "the tokens do not cover the bytes of the text"
        plain = bits.compression_bits(text.encode(), "".join(train_texts).encode())
        plain["single tokens, by their share in the training texts"] = bits.unigram_bits(ids[1:], trained, sizes)
        model = {}
        for context in CONTEXTS:
            nats = bits.sliding_nats(loaded, ids, exact, context=context)
            model[str(context)] = float(nats.double().sum()) / math.log(2) / size
            log(f"{book.title}, context {context}: {model[str(context)]:.4f} bits per byte")
        novels[book.part] = {"title": book.title, "bytes": size, "tokens": len(ids) - 1, "model": model, "plain": plain}
        if book.part == "test":
            forms = {"unwrapped": ids, "hard line breaks": stream(loaded.tokenizer, [hard_lines[book]])}
            attention_rows = {form: compare(spec, loaded, ids, sizes, chunks, log) for form, ids in forms.items()}
    setup = {"context": CONTEXT, "draws": DRAWS, "chunks": chunks}
    return {"novels": novels, "attentions": attention_rows, "setup": setup}


def compare(
    spec: ModelSpec, loaded: LoadedModel, ids: Tensor, sizes: Tensor, chunks: int, log: Callable[[str], None]
) -> list[dict]:
    """Return a row for each of `attentions`, all measured on the same chunks of a text.

    Chunks of CONTEXT tokens are spread evenly over the text. The value of a chunk is the bits per
    byte of its second half, under draw i mod DRAWS of the masks for chunk i. Intervals and paired
    differences come from `harness.common.stats`.

    Args:
        spec: the model.
        loaded: the loaded model.
        ids: token ids of the text (N,).
        sizes: bytes of each token.
        chunks: number of chunks.
        log: prints a line.
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
        chunk_bits = torch.empty(chunks, dtype=torch.float64)
        for draw in range(cell.draws):
            nats = bits.nats(loaded, windows[draw :: cell.draws], _weights(cell, draw), last=last)
            chunk_bits[draw :: cell.draws] = nats.double().sum(1) / math.log(2) / size[draw :: cell.draws]
        values = dict(enumerate(chunk_bits.tolist()))
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
    """Return the weights of a cell whose attention is not the checkpoint's."""
    weights = cell.weights(draw)
    assert weights is not None
    return weights


def attentions(spec: ModelSpec) -> list[Attention]:
    """Return exact ALiBi, Positional LSH and its windows of equal cost, without and with a near
    field, and the sliding window of a tile."""
    count, rb, near = Plsh(MASKS, "gamma", "count"), Plsh(MASKS, "gamma", "rb"), Plsh(MASKS, "gamma", "rb", near=TILE)
    windows = [references(masks, spec, CONTEXT)[name] for name in ("window", "sliding") for masks in (rb, near)]
    return [EXACT, count, rb, near, *windows, Sliding(TILE)]
