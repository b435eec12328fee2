"""The samplers of masks by name. A new sampler is one file and one line here."""

from kernels.methods.samplers.base import MATCHES, Sampler
from kernels.methods.samplers.fixed import Fixed
from kernels.methods.samplers.gamma import Gamma
from kernels.methods.samplers.systematic import Systematic

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in (Gamma(), Systematic(), Fixed())}

__all__ = ["MATCHES", "SAMPLERS", "Sampler", "sampler_of"]


def sampler_of(name: str) -> Sampler:
    """The sampler of that name. Raises ValueError for an unknown name."""
    if name not in SAMPLERS:
        raise ValueError(f"Unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]
