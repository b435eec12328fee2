"""Steps of generation captured and replayed, with kernel `triton` in Triton's interpreter and a
tape in place of a CUDA graph."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.models import steps, swap
from harness.models.cache import new_cache
from kernels import PositionalLSH, Window, alibi_slopes
from tests.models.random_models import BUILD, swapped
from tests.models.test_families import CLOSE, ids, padded

HEADS, PROMPT, NEW, CHUNK = 2, 42, 5, 6


class Tape(TorchDispatchMode):
    """What a CUDA graph is: every operator with the very memory of its arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, operator, types, given=(), named=None):
        out = operator(*given, **(named or {}))
        self.calls.append((operator, given, named or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        for operator, given, named, out in self.calls:
            again = operator(*given, **named)
            for to, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(to, torch.Tensor) and to.data_ptr() != new.data_ptr():
                    to.copy_(new)


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    """Every step after the first of its kind is the replay of one of these."""
    made = []

    def capture_graph(run, device):
        made.append(Tape())
        with made[-1]:
            out = run()
        return out, made[-1].replay

    monkeypatch.setattr(steps, "capture_graph", capture_graph)
    monkeypatch.setattr(swap, "Step", lambda *given, **_: steps.Step(*given, graphs=True))
    return made


def weights_of(name: str) -> list:
    slopes = 64.0 * alibi_slopes(HEADS)
    if name == "window":
        return [Window(slopes, 3.0, 2), Window(slopes, 2.0, 2)]
    draw = functools.partial(PositionalLSH.draw, slopes, 3, seed=3, weights=name, sinks=2)
    return [draw(layer=layer) for layer in range(2)]


@pytest.mark.parametrize(
    "build, name, evict", [("mpt", "window", True), ("bloom", "rb", False), ("falcon", "count", True)]
)
@torch.inference_mode()
def test_generate_replays_its_steps(build: str, name: str, evict: bool, tapes):
    """At other positions, over a buffer that is packed in between, with padding: token by token the
    oracle's."""
    model, weights = BUILD[build](heads=HEADS), weights_of(name)
    attention = swapped(model, kernel="triton")
    x, mask = padded(ids(2, PROMPT), [0, 5])
    cache = new_cache(model, PROMPT + NEW, evict=evict, chunk=CHUNK)
    with attention.use(weights):
        found = model.generate(
            x, attention_mask=mask, **cache.argument, use_cache=True, prefill_chunk_size=cache.chunk,
            do_sample=False, max_new_tokens=NEW, eos_token_id=None, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        attention.kernel = "exact"
        whole = model(found.sequences[:, :-1], attention_mask=torch.cat([mask, mask.new_ones(2, NEW - 1)], 1)).logits
    expected = whole[:, PROMPT - 1 :].transpose(0, 1)
    assert (torch.stack(found.logits) - expected).abs().max() <= CLOSE
    decoded = NEW - 1  # the first token is the prompt's
    assert tapes[-1].replays == decoded - 1 and cache.steps[2, 1].graphs
    if name == "window":  # what the first layer reaches, less than what the last chunk has left
        assert cache.layers[0].begin == PROMPT - weights[0].span > PROMPT - CHUNK - weights[0].span


@torch.inference_mode()
def test_what_a_replay_could_not_know_is_captured_anew(tapes):
    model = BUILD["mpt"](heads=HEADS)
    attention, x = swapped(model, kernel="triton"), ids(2, 30)
    cache = new_cache(model, 40)

    def step(at: int, own: list) -> torch.Tensor:
        with attention.use(own):
            return model(x[:, at : at + 1], **cache.argument, use_cache=True).logits

    first, second = weights_of("count"), weights_of("rb")
    with attention.use(first):
        model(x[:, :20], **cache.argument, use_cache=True)
    for at in (20, 21, 22):
        step(at, first)
    assert len(tapes) == 1
    step(23, second)
    step(24, second)
    assert len(tapes) == 2
    cache.reorder_cache(torch.tensor([1, 0]))
    x = x[[1, 0]]
    step(25, second)
    assert len(tapes) == 2 and cache.steps[2, 1].buffers[0] is cache.layers[0].keys
