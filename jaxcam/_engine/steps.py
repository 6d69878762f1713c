"""A step that runs thousands of times, such as one of training: compiling it counts for little, running it for all."""

from collections.abc import Callable
from functools import cache, wraps

import jax

from jaxcam._engine.compiled import config
from jaxcam._engine.compiler import HALF, USUAL, kind_of, options, unwritten
from jaxcam._engine.convolutions import fast


def repeated(function: Callable, **named) -> Callable:
    """`jax.jit(function, **named)` on the default device, rewritten as what is inside of a loop."""
    kinds: dict = {}

    @cache
    def compiled(platform, rewrite, kind):
        step = wraps(function)(fast(function, platform, is_repeated=True)) if rewrite else function
        return jax.jit(step, compiler_options=options(platform, kind), **named)

    @wraps(function)
    def run(*args, **kwargs):
        chosen = jax.default_backend(), config.rewrite
        leaves, structure = jax.tree.flatten((args, kwargs))
        key = chosen, structure, tuple((getattr(each, "shape", ()), getattr(each, "dtype", each)) for each in leaves)
        if key not in kinds:
            kinds[key] = kind_of(chosen[0], lambda: compiled(*chosen, USUAL).trace(*args, **kwargs))
        with unwritten(kinds[key] == HALF):
            return compiled(*chosen, kinds[key])(*args, **kwargs)

    return run
