"""Chunks by what a program needs: the compiled program says how much memory it takes, and its loops are made to fit.

A loop first asks for what usually suits the device; a share of that, the same for all loops of a program, is what
changes. It is found once for each program and set of shapes: more of it where the compiler counts little memory, less
where it counts too much or where the device says that it has no more. Inside a `jit` of your own, which is compiled by
you and later, loops take what is usual.
"""

import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax

from jaxcam._engine.compiler import HALF, USUAL, kind_of, options, unwritten

MOST = 256  # images in one pass: more keep no device busier


class Pass(NamedTuple):
    """What a loop computes at once.

    Attributes:
      size: how many images.
      asked: what it was asked to take, of which `size` is what divides its copies evenly.
      least, most: with one copy of each image, and with all of them.
    """

    size: int
    asked: int
    least: int
    most: int


_share = ContextVar("share of the usual chunk", default=1.0)
_passes = ContextVar("the passes of the program that is traced", default=None)


def chunk(images, chunk_size: int | None) -> int:
    """Images in one pass: `chunk_size` or what is usual, or the share of it that fits."""
    share = _share.get()
    return max(1, int(_usual(images) * share if chunk_size is None else chunk_size * min(1, share)))


def note(each: Pass) -> None:
    """A loop says what it computes at once."""
    if (passes := _passes.get()) is not None:
        passes.append(each)


def _usual(images) -> int:
    device = jax.local_devices()[0]
    return usual(images.shape[1:-1], budget(device) if device.platform != "cpu" else None)


def usual(space: Sequence[int], half: int | None) -> int:
    """Images in one pass, for a start: by half of the device's memory in bytes, or `None` on a CPU.

    8 images of 224 x 224 on a CPU, whose caches more do not fit; elsewhere a quarter of what it may take, as a
    ResNet-50 keeps about 1,800 bytes per pixel for its backward pass.
    """
    pixels = math.prod(space)
    if half is None:
        return min(32, max(1, 8 * 224**2 // pixels))
    return min(MOST, max(1, half // 4 // (1800 * pixels)))


def budget(device) -> int | None:
    """Bytes that a program may take for what it computes on the way: half of the device's, if it says what it has."""
    limits = [(device.memory_stats() or {}).get("bytes_limit")]
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _container()]
    return min((limit // 2 for limit in limits if limit), default=None)


def _container() -> int | None:
    """What a container may take, or `None`."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


@dataclass
class Fit:
    """The share of the usual chunk with which a program fits, the passes that it then has, and its kind."""

    share: float
    passes: list[Pass]
    kind: str = USUAL

    @property
    def largest(self) -> int:
        return max((each.size for each in self.passes), default=0)

    def less(self, ratio: float) -> float | None:
        """A share by which at least one pass is smaller, if one can be, and about `ratio` of what it is."""
        shares = [min(each.size * ratio, each.size - 1) / each.asked for each in self.passes if each.size > each.least]
        return self.share * max(shares) if shares else None


def suitable(needs: Callable, limit: int, grows: bool) -> Fit:
    """The share with which a program fits into `limit` bytes; `needs(share)` is its bytes and its passes.

    Memory is about proportional to a pass, so that mostly the first correction is the last. It is made larger only if
    it is four times too small, as that is a second compilation.
    """
    need, passes = needs(1.0)
    fit = Fit(1.0, passes)
    if grows and need < limit / 4 and any(each.size < each.most for each in passes):
        more = min(limit / 2 / max(need, 1), MOST / max(each.asked for each in passes))
        if more >= 2 and (larger := needs(more))[0] <= limit:
            return Fit(more, larger[1])
    while need > limit and (share := fit.less(limit / need)) is not None:
        need, passes = needs(share)
        fit = Fit(share, passes)
    return fit


def fitted(function: Callable, num_static: int = 0) -> Callable:
    """`function(*static, *arrays)` compiled, with its loops' chunks by what it needs.

    When a device has no more memory, the chunks are halved and the call is repeated, with a warning.
    """

    def with_share(share, *args):
        with _set(_share, share):
            return function(*args)

    with_share.__name__ = getattr(function, "__name__", type(function).__name__)  # what a profile shows
    static = tuple(range(num_static + 1))

    @cache
    def compiled(platform=None, kind=USUAL):
        return jax.jit(with_share, static_argnums=static, compiler_options=options(platform, kind))

    fits, passes_of = OrderedDict(), OrderedDict()

    def shaped(args):
        return *args[:num_static], tuple((each.shape, each.dtype) for each in jax.tree.leaves(args[num_static:]))

    def traced_with(share, args, trace):
        """What `trace` gives, and the program's passes: noted when it was traced, which JAX does once."""
        with _set(_passes, []) as passes:
            result = trace(share, *args)
        key = share, *shaped(args)
        return result, _kept(passes_of, key, passes or passes_of.get(key, []))

    def needs(platform, kind, args, share):
        traced, passes = traced_with(share, args, compiled(platform, kind).trace)
        with unwritten(kind == HALF):
            memory = traced.lower().compile().memory_analysis()  # the call that follows finds this program
        return getattr(memory, "temp_size_in_bytes", 0), passes

    def found(platform, args, key) -> tuple[Fit, bool]:
        known = key in fits
        if not known:
            limit = budget(jax.local_devices(backend=platform)[0])
            kind = kind_of(platform, lambda: traced_with(1.0, args, compiled(platform).trace)[0])
            need = partial(needs, platform, kind, args)
            fit = Fit(1.0, []) if limit is None else suitable(need, limit, platform != "cpu")
            fit.kind = kind
            _kept(fits, key, fit)
        return fits[key], not known

    def run(platform, *args):
        """On arrays on `platform`, or on arguments that are traced, where that is `None`."""
        if platform is None or jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            results, passes = traced_with(_share.get(), args, compiled())
            for each in passes:  # to the program that this one is a part of
                note(each)
            return results
        fit, first = found(platform, args, (platform, *shaped(args)))
        while True:
            try:
                with unwritten(fit.kind == HALF):
                    results = compiled(platform, fit.kind)(fit.share, *args)
                return jax.block_until_ready(results) if first and fit.passes else results
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or not fit.passes:
                    raise
                _halve(fit, partial(needs, platform, fit.kind, args), error)

    def program(platform, *args):
        """The one that has run on these, which JAX has not forgotten, if it can be written to a file."""
        fit = fits[platform, *shaped(args)]
        return None if fit.kind == HALF else compiled(platform, fit.kind).lower(fit.share, *args).compile()

    run.lower, run.program = partial(compiled().lower, 1.0), program
    return run


def _kept(cache: OrderedDict, key, value):
    """The value, put in; the oldest of very many goes."""
    cache[key] = value
    if len(cache) > 4096:
        cache.popitem(last=False)
    return value


def _halve(fit: Fit, needs: Callable, error: Exception) -> None:
    share = fit.less(0.5)
    if share is None:
        raise MemoryError(
            f"One copy of each image, {fit.largest} in all, needs more memory than the device has left; pass fewer or "
            "smaller images."
        ) from error
    fit.share, fit.passes = share, needs(share)[1]
    warnings.warn(
        f"The device has no memory for the chunks that were chosen; they are now {fit.largest} images. To choose so "
        f"from the start, pass chunk_size={fit.largest}.",
        stacklevel=2,
    )


@contextmanager
def _set(variable: ContextVar, value):
    before = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(before)
