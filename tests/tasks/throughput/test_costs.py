"""Operations and bytes against independent counts."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models.family import Architecture
from harness.models.load import random_model
from harness.tasks.throughput.costs import decode_bytes, prefill_flops, visited_pairs
from harness.tasks.throughput.devices import peaks_of
from kernels import Alibi, PositionalLSH, Window, alibi_slopes

SLOPES = alibi_slopes(4)


def union(weights: PositionalLSH, head: int, tokens: int) -> np.ndarray:
    """(tokens, tokens) bool: some mask puts both tokens into one bucket, by the definition of a
    bucket."""
    masks, position = weights.masks, np.arange(tokens)
    covered = np.zeros((tokens, tokens), dtype=bool)
    for width, shift in zip(masks.width[head].tolist(), masks.shift[head].tolist(), strict=True):
        bucket = np.floor((position - shift) / width)
        covered |= bucket[:, None] == bucket[None, :]
    return covered


def test_visited_pairs_are_those_of_the_draw_in_every_layer():
    tokens = 300
    layers = [PositionalLSH.draw(SLOPES, 3, seed=1, layer=layer, weights="rb") for layer in range(2)]
    brute = sum(int(np.tril(union(w, head, tokens)).sum()) for w in layers for head in range(4))
    assert visited_pairs(layers, tokens) == brute
    assert visited_pairs([Alibi(SLOPES)] * 3, tokens) == 3 * 4 * tokens * (tokens + 1) // 2


@pytest.mark.parametrize("family", ["mpt", "bloom", "falcon"])
def test_flops_of_a_forward_are_those_that_torch_counts(family):
    """torch counts a dense product of all queries with all keys: pairs as if every head saw every
    token."""
    tokens, batch = 24, 3
    arch = Architecture(family, layers=2, heads=4, width=64, vocabulary=101)
    model = random_model(arch, 0, attn_implementation="eager").eval()  # torch does not count all fused products
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(ids, use_cache=False, logits_to_keep=1)
    pairs = arch.layers * arch.heads * tokens**2
    assert prefill_flops(arch, pairs, tokens, batch) == counted.get_total_flops()


@pytest.mark.parametrize("sinks", [0, 3])
def test_a_token_reads_the_weights_and_what_it_reaches(sinks):
    arch = Architecture("mpt", layers=2, heads=4, width=64, vocabulary=101)
    model, context, batch = random_model(arch, 0), 500, 2
    window = Window(SLOPES, 1.5, sinks)
    reached = [int(1.5 / slope) + sinks + 1 for slope in SLOPES.tolist()]
    parameters = sum(p.numel() for p in model.parameters())  # the embedding is the head as well: read once
    expected = 4 * (parameters + batch * 2 * sum(reached) * arch.head_dim * arch.layers)
    assert decode_bytes(model, arch, [window] * 2, context, batch) == expected
    everything = decode_bytes(model, arch, [Alibi(SLOPES)] * 2, context, 1) - 4 * parameters
    assert everything == 4 * 2 * 2 * 4 * (context + 1) * arch.head_dim


def test_peaks_are_known_by_name_or_not_at_all():
    assert peaks_of("NVIDIA A100-SXM4-80GB").flops[torch.bfloat16] == 312e12
    assert peaks_of("NVIDIA H100 80GB HBM3").bandwidth == 3.35e12
    assert peaks_of("NVIDIA H100 PCIe") != peaks_of("NVIDIA H100 80GB HBM3")
    assert peaks_of("cpu AMD EPYC") is None
    assert peaks_of("NVIDIA GH200 480GB") is None and peaks_of("NVIDIA H200 NVL") is None  # others than the H200
