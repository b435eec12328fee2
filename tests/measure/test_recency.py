"""Attention by distance, against a loop over pairs."""

import math

import torch

from tests.measure import recency


def test_classes_of_distances_add_up_and_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(recency, "EDGES", (0, 1, 4, 12))
    tokens, rows = 12, 5
    scores = torch.randn(2, rows, tokens, generator=torch.Generator().manual_seed(0)).double()
    found = recency.by_distance(scores)
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
    for head in range(2):
        shares = [0.0, 0.0, 0.0]
        for row in range(rows):
            place = tokens - rows + row
            weights = [math.exp(scores[head, row, key]) for key in range(place + 1)]
            for key, weight in enumerate(weights):
                distance = place - key
                shares[0 if distance < 1 else 1 if distance < 4 else 2] += weight / sum(weights) / rows
        torch.testing.assert_close(found[head], torch.tensor(shares, dtype=torch.float64))


def test_the_bias_alone_has_the_share_of_a_geometric_series():
    slope, tokens = 0.25, recency.CONTEXT
    distance = torch.arange(tokens - 3, tokens)[:, None] - torch.arange(tokens)
    (shares,) = recency.by_distance(-slope * distance.abs()[None].double())
    q = math.exp(-slope)
    expected = [q**low - q**high for low, high in zip(recency.EDGES, recency.EDGES[1:], strict=False)]
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64))
