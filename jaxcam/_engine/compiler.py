"""What XLA's compiler is told on a CPU: to fuse sums alone, and to leave half precision to oneDNN.

Since jax 0.10 it fuses convolutions and what surrounds them into kernels of a library (YNNPACK), which take up to twice
as long as its own; the library's sums are several times as fast. What has half the digits it widens before it
multiplies, unless oneDNN does it, which since jax 0.12 it can be told to; but to write such a program to a file ends
the process. An option holds for a whole program, so it is given where arrays enter: inside a `jit` of your own, what
you told the compiler counts.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from threading import Lock

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxcam._engine.program import PRODUCTS

SUMS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True} if jax.__version_info__ >= (0, 12) else {}
# By platform, for programs in whole and in half precision: of the former, oneDNN is slow at the gradients of kernels.
OPTIONS = {"cpu": (SUMS, SUMS | ONEDNN)}


@cache
def options(platform: str | None, half: bool) -> dict | None:
    """The options of `jax.jit` on a platform; none where this version of XLA does not know them."""
    if platform not in OPTIONS:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS[platform][half])()
    except jax.errors.JaxRuntimeError:
        return options(platform, False) if half else None
    return OPTIONS[platform][half]


def is_half(platform: str, trace: Callable) -> bool:
    """Whether the program that `trace()` gives takes the options of half precision, if they are others."""
    return options(platform, True) != options(platform, False) and _has_halves(trace().jaxpr)


def _has_halves(program) -> bool:
    """Whether a jaxpr, or one in it, multiplies matrices or convolves in half precision."""
    if isinstance(program, Jaxpr | ClosedJaxpr):
        return any(_multiplies_halves(each) or _has_halves(tuple(each.params.values())) for each in program.eqns)
    return isinstance(program, tuple) and any(map(_has_halves, program))


def _multiplies_halves(equation) -> bool:
    return equation.primitive.name in PRODUCTS and equation.invars[0].aval.dtype in (jnp.bfloat16, jnp.float16)


_lock, _before = Lock(), []


@contextmanager
def unwritten(never: bool = True):
    """JAX's cache takes no program that is compiled in this block, nor in another thread meanwhile, if `never`."""
    if not never:
        yield
        return
    name = "jax_persistent_cache_min_compile_time_secs"
    with _lock:
        _before.append(jax.config.values[name])
        jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        with _lock:
            usual = _before[0]  # the blocks that began later found what this one set
            _before.pop()
            if not _before:
                jax.config.update(name, usual)
