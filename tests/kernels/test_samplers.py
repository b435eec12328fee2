"""A sampler is one class and one entry of `kernels.methods.samplers.SAMPLERS`: what it has no
formula for is refused, and what it has one for is used by every kernel, code that is compiled
included."""

import pytest
import torch

from kernels import PositionalLSH, alibi_slopes, attend, expected_pairs
from kernels.impl.triton.packed import bias_on_device, bias_op, pack_weights
from kernels.methods.cost import log_coverage
from kernels.methods.samplers import SAMPLERS
from kernels.methods.samplers.gamma import Gamma
from tests.extension.antithetic import Antithetic

SLOPES = alibi_slopes(4)


class Copies(Gamma):
    """S times one mask, so that the union is covered as by a single one: the "rb" weight is exp(-t)
    / exp(-t) = 1."""

    name = "copies"
    independent = False

    def draw(self, masks, uniform):
        return tuple(x.expand(-1, masks).contiguous() for x in super().draw(1, uniform[:, :3]))

    def log_coverage(self, t, masks):
        return -t


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for sampler in (Antithetic(), Copies()):
        monkeypatch.setitem(SAMPLERS, sampler.name, sampler)


def test_what_a_sampler_has_no_formula_for_is_refused_and_counts_are_computed():
    weights = PositionalLSH.draw(SLOPES, 5, seed=1, sampler="antithetic")
    q, k, v = torch.randn(3, 1, 4, 60, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(
        attend(q, k, v, weights, kernel="sdpa"), attend(q, k, v, weights, kernel="exact"), atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ValueError, match="use weights 'count' or 'exact'"):
        PositionalLSH.draw(SLOPES, 5, seed=1, sampler="antithetic", weights="rb")
    for match in ("fused", "passes"):
        with pytest.raises(ValueError, match="have no formula"):
            expected_pairs(SLOPES, 5, 60, sampler="antithetic", match=match)
    with pytest.raises(ValueError, match="independent masks"):
        weights.halves()
    assert SAMPLERS["antithetic"].matches == () and SAMPLERS["fixed"].matches == ("fused", "passes")


def test_expected_pairs_and_weights_follow_the_sampler_s_own_coverage():
    assert expected_pairs(SLOPES, 8, 90, sampler="copies") == pytest.approx(expected_pairs(SLOPES, 1, 90))
    assert expected_pairs(SLOPES, 8, 90, sampler="copies", match="passes") == pytest.approx(
        8 * expected_pairs(SLOPES, 1, 90)
    )
    weights = PositionalLSH.draw(SLOPES, 8, seed=3, sampler="copies", weights="rb")
    held = weights.matrix(50)
    assert set(held.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(held > 0, PositionalLSH.draw(SLOPES, 8, seed=3, sampler="copies").matrix(50) > 0)


@pytest.mark.parametrize("compiling", [False, True])
def test_the_table_by_distance_is_that_of_the_sampler_under_torch_compile_too(monkeypatch, compiling):
    weights = PositionalLSH.draw(SLOPES, 8, seed=3, sampler="copies", weights="rb")
    packed = pack_weights(weights, torch.device("cpu"))
    assert packed.law == "distance"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    found = bias_on_device(weights, 40, packed)
    assert found.shape[1] >= 40 or found.shape[1] == weights.span + 1
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("sampler", ["copies", "systematic"])
def test_compiled_code_and_eager_code_weigh_alike(sampler):
    packed = pack_weights(PositionalLSH.draw(SLOPES, 8, seed=3, sampler=sampler, weights="rb"), torch.device("cpu"))
    compiled = torch.compile(lambda x: bias_op(x, 8, sampler, 40, 0), backend="eager", fullgraph=True)(packed.numbers)
    t = SLOPES.double()[:, None] * torch.arange(40)
    by_hand = (-t - log_coverage(t, 8, sampler)) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(compiled, by_hand.float())
