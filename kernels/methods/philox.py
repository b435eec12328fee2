"""Uniform numbers as a function of their key alone: NumPy's SeedSequence and Philox4x64-10, for
many keys at once.

Counter-based numbers (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) whose key is hashed from as many words as a draw has names. The bits are those of
``numpy.random.Philox``; torch's own generator keeps 32 bits of a seed, and `kernels` needs nothing
but torch.
"""

from collections.abc import Sequence

import torch

HALF = 2**32 - 1  # the lower 32 bits of a word


def _signed(word: int) -> int:
    """A 64-bit word as torch's int64 holds it: the same bits, in two's complement."""
    return word - 2**64 if word >= 2**63 else word


ROUNDS = 10
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
WEYL = _signed(0x9E3779B97F4A7C15), _signed(0xBB67AE8584CAA73B)


def uniforms(keys: Sequence[Sequence[int]], count: int) -> torch.Tensor:
    """`count` numbers of (0, 1) with 53 bits each for every one of N keys of as many words below
    2**64: (N, count) float64.

    Equal to ``((Philox(SeedSequence(words)).random_raw(count) >> 11) + 0.5) / 2**53`` of NumPy, the
    words of a key split into lower and upper 32 bits.
    """
    halves = [[half for word in key for half in (word & HALF, word >> 32)] for key in keys]
    raw = philox(seed_sequence(torch.tensor(halves, device="cpu")), count)
    return ((raw >> 11 & 2**53 - 1).double() + 0.5) * 2.0**-53


def seed_sequence(entropy: torch.Tensor) -> torch.Tensor:
    """The 128-bit keys of N rows of at least four 32-bit words: (N, W) int64 -> (N, 2) int64, as
    NumPy's ``SeedSequence(row).generate_state(2, uint64)``."""
    if entropy.shape[1] < 4:
        raise ValueError(f"A key needs at least 4 words of 32 bits, not {entropy.shape[1]}.")
    words = entropy.unbind(1)
    mix = _hasher(0x43B0D7E5, 0x931E8875)
    pool = [mix(word) for word in words[:4]]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = _combined(pool[target], mix(pool[source]))
    for word in words[4:]:
        pool = [_combined(one, mix(word)) for one in pool]
    mix = _hasher(0x8B51F9DD, 0x58F38DED)
    low, high, low_2, high_2 = (mix(one) for one in pool)
    return torch.stack([low | high << 32, low_2 | high_2 << 32], 1)


def philox(key: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` words of 64 bits of each key's stream: (N, 2) -> (N, count) int64. The
    counter starts at 1, as NumPy's does."""
    blocks = torch.arange(1, (count + 3) // 4 + 1, device=key.device)
    a, b, c, d = (blocks * (place == 0) for place in range(4))
    first, second = key[:, :1], key[:, 1:]
    for _ in range(ROUNDS):
        (high, low), (high_2, low_2) = _product(a, MULTIPLIERS[0]), _product(c, MULTIPLIERS[1])
        a, b, c, d = high_2 ^ b ^ first, low_2, high ^ d ^ second, low
        first, second = first + WEYL[0], second + WEYL[1]
    return torch.stack([a, b, c, d], -1).flatten(1)[:, :count]


def _product(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper and lower 64 bits of an unsigned product. int64 keeps the lower bits of every sum and
    product; only a shift to the right must not bring in the sign."""
    low, high = factor & HALF, factor >> 32
    x_low, x_high = x & HALF, x >> 32 & HALF
    middle = x_high * low + (x_low * low >> 32 & HALF)
    other = x_low * high + (middle & HALF)
    return x_high * high + (middle >> 32 & HALF) + (other >> 32 & HALF), x * _signed(factor)


def _hasher(constant: int, factor: int):
    """SeedSequence's hash of 32-bit words, whose constant changes with every call."""

    def mix(value: torch.Tensor) -> torch.Tensor:
        nonlocal constant
        value = value ^ constant
        constant = constant * factor & HALF
        value = value * constant & HALF
        return value ^ value >> 16

    return mix


def _combined(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    mixed = 0xCA01F9DD * x - 0x4973F715 * y & HALF
    return mixed ^ mixed >> 16
