"""The random generator of a seeded request under runner V1: set to the position after the delivered tokens.

The host draws once per token; the kind of the draw depends on the sampler. A generator on the CPU has no position that
could be set, so the draws are repeated; on a GPU the offset is set.
"""

from __future__ import annotations

from typing import Any

import torch


def new_generator(params: Any, tokens: int, runner: Any) -> torch.Generator | None:
    """Return a generator for a rank that never had the request, advanced by `tokens` tokens; None without a seed."""
    if params.seed is None or params.temperature == 0:
        return None
    generator = torch.Generator(device=runner.device)
    set_generator(generator, params.seed, tokens, runner)
    return generator


def set_generator(generator: torch.Generator, seed: int, tokens: int, runner: Any) -> None:
    """Set `generator` to the state that the host's sampler reaches after `tokens` tokens of a request with `seed`."""
    generator.manual_seed(seed)
    if tokens == 0:
        return
    if generator.device.type == "cpu":
        _repeat_draws(generator, tokens, runner)
    else:
        generator.set_offset(tokens * _offset_per_draw(seed, runner))


def _repeat_draws(generator: torch.Generator, tokens: int, runner: Any) -> None:
    if not _draws_exponential(runner):
        # One call draws the same as `tokens` calls for one number: the CPU's generator is a plain sequence.
        torch.randint(0, 2**31, (tokens,), generator=generator, dtype=torch.long)
        return
    noise = torch.empty(_vocab_size(runner), dtype=_noise_dtype(runner))
    for _ in range(tokens):
        noise.exponential_(generator=generator)


def _offset_per_draw(seed: int, runner: Any) -> int:
    scratch = torch.Generator(device=runner.device)
    scratch.manual_seed(seed)
    torch.empty(_vocab_size(runner), device=runner.device, dtype=_noise_dtype(runner)).exponential_(generator=scratch)
    return scratch.get_offset()


def _sampler(runner: Any) -> Any:
    return runner.sampler.topk_topp_sampler


def _draws_exponential(runner: Any) -> bool:
    sampler = _sampler(runner)
    uses_cpu_kernel = getattr(sampler.forward, "__name__", "") == "forward_cpu"
    return not uses_cpu_kernel or bool(getattr(sampler, "use_fp64_gumbel", False))


def _noise_dtype(runner: Any) -> torch.dtype:
    return torch.float64 if getattr(_sampler(runner), "use_fp64_gumbel", False) else torch.float32


def _vocab_size(runner: Any) -> int:
    size: int = runner.model_config.get_vocab_size()
    return size
