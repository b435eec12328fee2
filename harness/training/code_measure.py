"""What tiny-code needs its context for: bits per byte of unseen packages by context and attention,
and the gain of a long context by the distance of the last occurrence.

All figures use the harness's attention, as for any model.
"""

import keyword
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.attentions.alibi import EXACT
from harness.attentions.base import Attention
from harness.attentions.plsh import Plsh
from harness.attentions.registry import references
from harness.attentions.sliding import Sliding
from harness.cell import Cell
from harness.common import stats
from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import ModelSpec, resolve_model
from harness.training import bits
from harness.training.text_train import stream

CONTEXTS = (256, 512, 1024, 2048)
PASSAGE, PASSAGES = 1024, 64
MASKS, DRAWS, SLIDING = 16, 8, 128
EDGES = (0, 64, 128, 256, 512, 1024, 2048)
IDENTIFIER = re.compile(r"[^\W\d]\w*")


def measure(folder: Path, text: str, log: Callable[[str], None], passages: int = PASSAGES) -> dict:
    """Return all figures of the model card as JSON.

    Args:
        folder: folder of the model.
        text: the text.
        log: prints a line.
        passages: number of passages of PASSAGE tokens, spread evenly over the text.
    """
    spec = resolve_model(ModelConfig(name=folder.name, path=str(folder)), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    ids = stream(loaded.tokenizer, [text])
    sizes = bits.byte_counts(loaded.tokenizer)
    assert int(sizes[ids].sum()) == len(text.encode()), "the tokens do not cover the bytes of the text"
    longest = max(CONTEXTS)
    starts = torch.linspace(longest + 1, len(ids) - PASSAGE, passages).long()
    targets = starts[:, None] + torch.arange(PASSAGE)
    size = sizes[ids[targets]].sum(1)

    def score(attention: Attention, context: int) -> Tensor:
        """Return the nats (passages, PASSAGE) of sliding windows, which advance by half."""
        half = context // 2
        ends = starts[:, None] + torch.arange(half, PASSAGE + 1, half) - 1
        windows = ids[ends[..., None] + torch.arange(-context, 1)]
        cell = Cell(spec, attention, "auto", context, 0, DRAWS if attention.random else 1, 0)
        nats = torch.empty(targets.shape, dtype=torch.float64)
        for draw in range(cell.draws):
            weights = cell.weights(draw)
            assert weights is not None
            rows = windows[draw :: cell.draws]
            found = bits.nats(loaded, rows.flatten(0, 1), weights, last=half)
            nats[draw :: cell.draws] = found.double().view(len(rows), PASSAGE)
        return nats

    def row(nats: Tensor, base: Tensor | None, draws: int = 1) -> dict:
        """Return bits per byte with an interval, and the paired difference from `base`."""
        draw_of = {i: i % draws for i in range(passages)}
        values, before = (dict(enumerate(_bits_per_byte(x, size))) if x is not None else None for x in (nats, base))
        assert values is not None
        mean = stats.mean(
            list(values.values()), list(draw_of.values()), clustered=draws > 1, unit="bits/byte", least=0.0
        )
        change = stats.paired_difference(values, before, draw_of, clustered=draws > 1) if before else None
        return {"bits_per_byte": mean.as_dict(), "difference": change.as_dict() if change else None}

    exact = {}
    for context in CONTEXTS:
        exact[context] = score(EXACT, context)
        log(f"context {context}: {sum(_bits_per_byte(exact[context], size)) / passages:.4f} bits per byte")
    by_context = [{"context": c} | row(exact[c], exact[CONTEXTS[0]] if c != CONTEXTS[0] else None) for c in CONTEXTS]
    last = row(exact[longest], exact[longest // 2])["difference"]
    attention_rows = []
    for attention in attentions(spec, longest):
        cell = Cell(spec, attention, "auto", longest, 0, DRAWS if attention.random else 1, 0)
        same = attention == EXACT
        nats = exact[longest] if same else score(attention, longest)
        figures = row(nats, None if same else exact[longest], cell.draws)
        attention_rows.append({"label": cell.attention.label, "pairs_per_row": cell.cost()} | figures)
        log(f"{attention.label}: {figures['bits_per_byte']['value']:.4f} bits per byte")
    gain = (exact[CONTEXTS[0]] - exact[longest]) / math.log(2)
    distances = {
        "the same token": token_distances(ids)[targets],
        "the same identifier": identifier_distances(loaded.tokenizer, text)[targets],
    }
    return {
        "setup": {
            "passages": passages,
            "passage": PASSAGE,
            "tokens": len(ids) - 1,
            "bytes": len(text.encode()),
            "draws": DRAWS,
            "contexts": [CONTEXTS[0], longest],
        },
        "contexts": by_context,
        "last_doubling": last,
        "attentions": attention_rows,
        "gain": {name: by_distance(gain, distance, int(size.sum())) for name, distance in distances.items()},
    }


def _bits_per_byte(nats: Tensor, size: Tensor) -> list[float]:
    return (nats.sum(1) / math.log(2) / size).tolist()


def attentions(spec: ModelSpec, context: int) -> list[Attention]:
    """Return exact ALiBi, the sliding window of SLIDING tokens, Positional LSH with both weights, and
    the slope window and the sliding window that visit as many pairs."""
    random = [Plsh(MASKS, "gamma", weights) for weights in ("count", "rb")]
    of_cost = references(random[0], spec, context)
    return [EXACT, Sliding(SLIDING), *random, of_cost["window"], of_cost["sliding"]]


def token_distances(ids: Tensor) -> Tensor:
    """Return the distance (N,) of each token from the last one of the same id; 0 if there is none."""
    seen: dict[int, int] = {}
    found = []
    for position, token in enumerate(ids.tolist()):
        found.append(position - seen.get(token, position))
        seen[token] = position
    return torch.tensor(found)


def identifier_distances(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Return the distance (N,) in tokens from the last occurrence of the same identifier.

    All tokens of an occurrence have the distance between the first tokens of both. It is 0 for the
    first occurrence, and -1 outside of identifiers. Python's keywords are no identifiers.

    Args:
        tokenizer: the tokenizer, whose end token precedes the text as in `stream`.
        text: the text.
    """
    spans = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    owner = torch.full((len(text),), -1)
    names = [m for m in IDENTIFIER.finditer(text) if not keyword.iskeyword(m[0])]
    for index, match in enumerate(names):
        owner[match.start() : match.end()] = index
    owners = owner[torch.tensor([end - 1 for _, end in spans])].tolist()
    seen: dict[str, int] = {}
    found, current, distance = [-1], -1, -1
    for position, index in enumerate(owners, 1):
        if index >= 0 and index != current:
            name = names[index][0]
            distance = position - seen.get(name, position)
            seen[name] = position
        current = index
        found.append(distance if index >= 0 else -1)
    return torch.tensor(found)


def by_distance(gain: Tensor, distance: Tensor, size: int) -> list[dict]:
    """Return the gain of tokens by the distance of their last occurrence.

    Args:
        gain: bits gained by each token.
        distance: the distance of each token; 0 for a first occurrence, -1 for none of the kind.
        size: bytes of all tokens.
    """
    classes = [
        (f"{low + 1}-{high}", (distance > low) & (distance <= high))
        for low, high in zip(EDGES, EDGES[1:], strict=False)
    ]
    classes.append((f"over {EDGES[-1]}", distance > EDGES[-1]))
    classes += [("first occurrence", distance == 0), ("none", distance < 0)]
    return [
        {
            "distance": name,
            "tokens": float(chosen.double().mean()),
            "bits_per_token": float(gain[chosen].mean()),
            "bits_per_byte": float(gain[chosen].sum() / size),
        }
        for name, chosen in classes
        if chosen.any()
    ]
