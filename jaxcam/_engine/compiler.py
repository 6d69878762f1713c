"""What XLA's compiler is told on a CPU: to fuse sums alone.

Since jax 0.10 it fuses convolutions and what surrounds them into kernels of a library (YNNPACK), which take up to twice
as long as its own; the library's sums are several times as fast. An option holds for a whole program, so it is given
where arrays enter: inside a `jit` of your own, what you told the compiler counts.
"""

from functools import cache

import jax

OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}}


@cache
def options(platform: str | None) -> dict | None:
    """The options of `jax.jit` on a platform; none where this version of XLA does not know them."""
    chosen = OPTIONS.get(platform)
    if chosen is not None:
        try:
            jax.jit(lambda: 0, compiler_options=chosen)()
        except jax.errors.JaxRuntimeError:
            return None
    return chosen
