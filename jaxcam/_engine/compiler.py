"""What XLA's compiler is told on a CPU, by what a program multiplies: which library computes what.

Since jax 0.10 it fuses convolutions and what surrounds them into kernels of a library (YNNPACK), which take up to twice
as long as its own; the library's sums are several times as fast, and so are its products with wide kernels that are
turned over, as in the gradient of a dense layer. What has half the digits XLA widens before it multiplies, unless
oneDNN does it, which since jax 0.12 it can be told to; but to write such a program to a file ends the process. An
option holds for a whole program, so it is given where arrays enter: inside a `jit` of your own, what you told the
compiler counts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxcam._engine.program import PRODUCTS

SUMS, BOTH = (
    {"xla_cpu_experimental_ynn_fusion_type": ",".join(f"LIBRARY_FUSION_TYPE_{each}" for each in kinds)}
    for kinds in (("REDUCE",), ("REDUCE", "INDIVIDUAL_DOT"))
)
ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True} if jax.__version_info__ >= (0, 12) else {}
USUAL, TURNED, HALF = "usual", "with wide kernels turned over", "with half the digits"
# By platform and by what a program multiplies: at the gradients of kernels in whole precision oneDNN is slow.
OPTIONS = {"cpu": {USUAL: SUMS, TURNED: BOTH, HALF: SUMS | ONEDNN}}
PAGE, FEW = 4096, 256  # bytes of memory, and rows that are multiplied by a kernel, as measured on two cores


@cache
def options(platform: str | None, kind: str = USUAL) -> dict | None:
    """The options of `jax.jit` on a platform; none where this version of XLA does not know them."""
    if platform not in OPTIONS:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS[platform][kind])()
    except jax.errors.JaxRuntimeError:
        return None if kind == USUAL else options(platform)
    return OPTIONS[platform][kind]


def kind_of(platform: str, trace: Callable) -> str:
    """Of the kinds of program that a platform has options for, the one that `trace()` gives."""
    if platform not in OPTIONS:
        return USUAL
    found = set(_products(trace().jaxpr))
    kind = next((each for each in (HALF, TURNED) if each in found), USUAL)
    return kind if options(platform, kind) != options(platform) else USUAL


def _products(program) -> Iterator[str]:
    """The kind of each equation that multiplies matrices or convolves, in a jaxpr or one in it."""
    if isinstance(program, tuple):
        for each in program:
            yield from _products(each)
    if not isinstance(program, Jaxpr | ClosedJaxpr):
        return
    for each in program.eqns:
        if each.primitive.name in PRODUCTS:
            yield _kind(each)
        yield from _products(tuple(each.params.values()))


def _kind(equation) -> str:
    if equation.invars[0].aval.dtype in (jnp.bfloat16, jnp.float16):
        return HALF
    return TURNED if equation.primitive.name == "dot_general" and _is_turned(equation) else USUAL


def _is_turned(equation) -> bool:
    """A matrix with rows of a page of memory is slow to read down its columns, for which only many products make up."""
    rows, kernel = (each.aval for each in equation.invars)
    (_, contracted), (batch, _) = equation.params["dimension_numbers"]
    if batch or kernel.ndim != 2 or tuple(contracted) != (1,):
        return False
    is_wide = kernel.shape[1] * kernel.dtype.itemsize >= PAGE and kernel.size >= 2**18
    return is_wide and rows.size <= FEW * kernel.shape[1]


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
