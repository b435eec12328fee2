"""task=theory on captured queries, keys and values, against projections of stock transformers and
dense formulas."""

import math

import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from harness.analysis import reader
from harness.common.paths import EMBEDDED
from harness.models.capture import capture
from harness.models.load import LoadedModel
from harness.tasks.text import fidelity
from harness.tasks.text.fidelity import FIDELITY
from harness.tasks.theory.captured import head_figures
from harness.tasks.theory.options import Options
from harness.tasks.theory.task import THEORY
from kernels import Alibi, PositionalLSH
from kernels import Window as WindowWeights
from tests.models import random_models
from tests.models.random_models import CASES, swapped

TOKENS, HEADS = 40, 8
IDS = torch.randint(1, 97, (TOKENS,), generator=torch.Generator().manual_seed(1))


def captured(loaded: LoadedModel) -> list[tuple]:
    layers: list[tuple] = []
    capture(loaded, IDS[None], lambda layer, q, k, v, scale: layers.append((layer, q[0], k[0], v[0], scale)))
    assert [layer for layer, *_ in layers] == list(range(len(layers)))
    return [rest for _, *rest in layers]


@pytest.mark.parametrize("family, options", CASES)
@torch.inference_mode()
def test_captured_tensors_give_the_attention_of_stock_transformers(family, options):
    """softmax(q k^T scale + bias) v against what stock feeds to its output projection."""
    ours, stock = (getattr(random_models, family)(**options) for _ in range(2))
    attention = swapped(ours)
    outputs: list[torch.Tensor] = []
    for name, module in stock.named_modules():
        if name.endswith((".attn.out_proj", ".self_attention.dense")):
            module.register_forward_pre_hook(lambda _, arguments: outputs.append(arguments[0][0]))
    stock(IDS[None])
    layers = captured(LoadedModel(ours, None, attention))
    assert len(layers) == len(outputs) == 2
    at = torch.arange(TOKENS)
    bias = Alibi(attention.slopes).log_dense(at, at).float().masked_fill(at > at[:, None], -math.inf)
    for (q, k, v, scale), expected in zip(layers, outputs, strict=True):
        assert v.shape == k.shape == q.shape
        output = (q @ k.transpose(1, 2) * scale + bias).softmax(-1) @ v
        torch.testing.assert_close(output.transpose(0, 1).flatten(1), expected, atol=2e-5, rtol=1e-4)


def mistral(**options) -> MistralForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": HEADS, "num_key_value_heads": 2}
    config = MistralConfig(**sizes, num_hidden_layers=2, initializer_range=0.12, **{"vocab_size": 97, **options})
    return MistralForCausalLM(config).eval()


@torch.inference_mode()
def test_mistral_is_captured_before_its_rotary_embedding():
    model = mistral()
    hidden = model(IDS[None], output_hidden_states=True).hidden_states
    layers = captured(LoadedModel(model, None, None))
    for layer, (q, k, v, scale) in enumerate(layers):
        block = model.model.layers[layer]
        x = block.input_layernorm(hidden[layer][0])
        for found, projection in (
            (q, block.self_attn.q_proj),
            (k, block.self_attn.k_proj),
            (v, block.self_attn.v_proj),
        ):
            heads = (x @ projection.weight.T).view(TOKENS, -1, 16)
            expected = torch.stack([heads[:, h * heads.shape[1] // HEADS] for h in range(HEADS)])
            torch.testing.assert_close(found, expected)
        assert scale == 0.25


WEIGHTS = {
    "count": lambda slopes: PositionalLSH.draw(slopes, 6, seed=4),
    "rb, sinks, near": lambda slopes: PositionalLSH.draw(slopes, 6, seed=4, weights="rb", sinks=3, near=5),
    "window": lambda slopes: WindowWeights(slopes, 1.2),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_figures_of_a_head_are_those_of_dense_attention(name, monkeypatch):
    monkeypatch.setattr("harness.tasks.theory.captured.ROWS", 17)
    slopes, n, head, scale = torch.tensor([0.4, 0.1, 0.03]), 60, 1, 0.3
    weights, exact = WEIGHTS[name](slopes), Alibi(slopes)
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(n, 12, generator=generator) + shift for shift in (0, 0, 2))
    windows = [torch.stack([x.flip(0), x]) for x in (q, k, v)]
    found = head_figures(exact, weights, head, *windows, scale)[1]

    at = torch.arange(n)
    log_l, log_w = (w.log_dense(at, at)[head].masked_fill(at > at[:, None], -math.inf) for w in (exact, weights))
    s = q.double() @ k.double().T * scale
    p, changed = ((s + log).exp() for log in (log_l, log_w))
    p, changed = (x / x.sum(1, keepdim=True) for x in (p, changed))
    o, other, centred = p @ v.double(), changed @ v.double(), p @ (v - v.mean(0)).double()
    row = (other - o).norm(dim=1) / o.norm(dim=1)
    mass = log_l.exp() / log_l.exp().sum(1, keepdim=True)
    distance = (at[:, None] - at).clamp_min(0)
    steps, advantage = float(slopes[head]) * distance, (p / mass).log()
    expected = {
        "output_error": float((other - o).norm() / o.norm()),
        "output_error_centred": float((other - o).norm() / centred.norm()),
        "output_frobenius": float((other - o).norm()),
        "row_error_median": float(row.quantile(0.5)),
        "row_error_p99": float(row.quantile(0.99)),
        "cosine": float(torch.cosine_similarity(o, other, dim=1).mean()),
        "tv": float((p - changed).abs().sum(1).mean() / 2),
        "mass_missed": float(p[log_w.isneginf()].sum() / n),
        "mass_beyond_2": float(p[steps > 2].sum() / n),
        "advantage_over_1": float(p[(steps > 1) & (advantage > steps)].sum() / p[steps > 1].sum()),
        "score_range": sum(float(s[i, : i + 1].max() - s[i, : i + 1].min()) / 2 for i in range(n)) / n,
    }
    if name != "window":  # a key is missed where none of 6 masks covers it
        missed = (1 - (-steps).exp()) ** 6
        near, sinks = (5, 3) if "rb" in name else (0, 0)
        missed[(distance < near) | (at < sinks)] = 0
        expected["mass_missed_predicted"] = float((p * missed).sum() / n)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=2e-4, abs=1e-7)
    assert ("mass_missed_predicted" in found) == (name != "window")


def words(results, *more: str) -> list[str]:
    return ["task=theory", f"results={results}", "tracking=disabled", "references=none", "masks=4", *more]


BOOKS = ["model=tiny-books", "task.theory.text=novel", "context=128", "samples=4", "draws=2"]


def test_a_run_has_every_head_of_a_text(run, tmp_path):
    code, document, _, err = run(*words(tmp_path, *BOOKS))
    assert code == 0, err
    (record,) = reader.records(tmp_path)
    rows = list(record.rows.values())
    errors = [r.more["heads"]["output_error"] for r in rows]
    assert [len(e) for e in errors] == [3] * 4
    assert {len(layer) for e in errors for layer in e} == {16}
    assert [r.draw for r in rows] == [0, 1, 0, 1]
    assert len({r.doc_hash for r in rows}) == 4
    metrics = {name.removeprefix("theory/"): m["value"] for name, m in document["metrics"].items()}
    assert next(iter(metrics)) == "output_error"
    assert metrics["output_error"] == pytest.approx(sum(r.score for r in rows) / 4)
    by_head = [metrics[f"output_error_head_{layer}_{head}"] for layer in (1, 2, 3) for head in range(1, 17)]
    assert sum(by_head) / 48 == pytest.approx(metrics["output_error"])


def test_more_masks_have_less_error_and_exact_alibi_none(run, tmp_path):
    found = {}
    for name, more in {"S=4": ["masks=4"], "S=64": ["masks=64"], "exact": ["attn=alibi"]}.items():
        options = [w for w in words(tmp_path, *BOOKS) if name != "exact" or not w.startswith("draws")]
        code, document, _, err = run(*options, *more)
        assert code == 0, err
        found[name] = document["metrics"]["theory/output_error"]["value"]
    assert found["exact"] == 0 < found["S=64"] < found["S=4"] / 2


@pytest.mark.parametrize(
    "more, said",
    [
        (["task.theory.causal=false"], "goes with causal=true"),
        (["task.theory.score_ranges=[1]"], "is for Gaussian input"),
        (["attn=stock"], "attn=stock has none"),
        (["attn=topk"], "depend on the scores"),
        (["task.theory.text=/nowhere.txt"], "there is no such file"),
        (["model.sigma=0"], "model.sigma must be a number of tokens above 0"),
        (["task=perplexity", "model.sigma=64"], "was not trained with model.sigma=64"),
    ],
)
def test_mistakes_are_answered_in_words(run, tmp_path, more, said):
    names = {word.split("=")[0] for word in more}
    given = [w for w in words(tmp_path, *BOOKS) if w.split("=")[0] not in names]
    given = [w for w in given if "task=perplexity" not in more or not w.startswith("task.")]
    code, document, _, err = run(*given, *more)
    assert (code, document["status"]) == (2, "invalid")
    assert said in err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Mistral checkpoint with random weights and the tokenizer of an embedded model."""
    folder = tmp_path_factory.mktemp("mistral")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "tiny-books")
    mistral(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_without_alibi_is_measured_under_a_given_slope(run, tmp_path, checkpoint):
    given = ["model=local", f"model.path={checkpoint}", "task.theory.text=novel", "context=128", "samples=2", "draws=2"]
    code, document, _, err = run(*words(tmp_path, *given, "model.sigma=16"))
    assert code == 0, err
    assert document["metrics"]["theory/output_error"]["value"] > 0.01
    (record,) = reader.records(tmp_path)
    assert record.identity.model["slopes"] == [1 / 16] * HEADS
    assert record.cell.model.endswith("sigma 16")


@pytest.mark.parametrize(
    "more, said",
    [([], "has no ALiBi: give the slope"), (["model.sigma=16", "task=retrieval"], "was not trained with model.sigma")],
)
def test_a_model_without_alibi_runs_nothing_else(run, tmp_path, checkpoint, more, said):
    given = [w for w in words(tmp_path, "model=local", f"model.path={checkpoint}", "context=128")]
    code, document, _, err = run(*given, *more)
    assert (code, document["status"]) == (2, "invalid")
    assert said in err


def test_options_that_are_off_leave_the_ids_of_earlier_records():
    assert THEORY.identity(Options()) == {"causal": True}
    asked = FIDELITY.identity(fidelity.Options())
    assert set(asked) == {"text", "stride", "attribution", "windows"}
    assert set(FIDELITY.identity(fidelity.Options(crossed=True, sink_tokens=4))) == {*asked, "crossed", "sink_tokens"}
