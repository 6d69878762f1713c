"""A step that runs thousands of times, such as one of training: compiling it counts for little, running it for all."""

from collections.abc import Callable
from functools import cache, wraps

import jax

from jaxcam._engine.compiled import config
from jaxcam._engine.compiler import options
from jaxcam._engine.convolutions import fast


def repeated(function: Callable, **named) -> Callable:
    """`jax.jit(function, **named)` on the default device, rewritten as what is inside of a loop."""

    @cache
    def compiled(platform, rewrite):
        step = wraps(function)(fast(function, platform, is_repeated=True)) if rewrite else function
        return jax.jit(step, compiler_options=options(platform), **named)

    @wraps(function)
    def run(*args, **kwargs):
        return compiled(jax.default_backend(), config.rewrite)(*args, **kwargs)

    return run
