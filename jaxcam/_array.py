"""Array operations that several files share: rows of images, a map's scale, and matrices along the axes of space.

What belongs to an image, but is none, is marked as `Rows`; whoever repeats images calls `repeated` on the tree that
holds it. Resizing and blurring are one small matrix for each axis of space, however many there are.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 1e-6  # a range this small against the values is float32 rounding, not signal
EXACT = jax.lax.Precision.HIGHEST


@partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Rows:
    """An array with a row for each image, to be carried by a score or a tap: whatever repeats images repeats its rows.

    Example:
      >>> repeated(Rows(jnp.array([1, 2])), 2).array
      Array([1, 1, 2, 2], dtype=int32)
    """

    array: Any


def repeated(tree, count: int):
    """`tree` for `count` copies of each image, image by image: its `Rows` repeated, all else as it is."""

    def repeat(leaf):
        return Rows(flat(jnp.broadcast_to(leaf.array[:, None], (len(leaf.array), count, *leaf.array.shape[1:]))))

    is_rows = partial(_is, Rows)
    return jax.tree.map(lambda leaf: repeat(leaf) if is_rows(leaf) else leaf, tree, is_leaf=is_rows)


def each_image(function, *args):
    """`function(*args) -> [...]` of each image by itself, as a batch of one, mapped over all of them: `[n, ...]`.

    What has a row for each image is given as `Rows`, or holds them; each call sees `Rows` of one row, and all else as
    it is. What a call computes from its image alone is computed once, however much it maps over inside.

    Example:
      >>> each_image(lambda rows, scale: rows.array[0] * scale, Rows(jnp.array([1, 2])), 3)
      Array([3, 6], dtype=int32)
    """
    is_rows = partial(_is, Rows)
    leaves, structure = jax.tree.flatten(args, is_leaf=is_rows)

    def of_one(rows):
        given = iter(rows)
        return function(*jax.tree.unflatten(structure, [Rows(next(given)) if is_rows(x) else x for x in leaves]))

    return jax.vmap(of_one)([x.array[:, None] for x in leaves if is_rows(x)])


def _is(kind, value) -> bool:
    return isinstance(value, kind)


def flat(copies):
    """`[n, m, ...]` as `[n * m, ...]`; images come first, so an axis of images that is sharded stays so."""
    return copies.reshape(copies.shape[0] * copies.shape[1], *copies.shape[2:])


def normalize(maps, first: int = 1):
    """`(x - min) / (max - min)` over the axes from `first` on; a constant map gives zeros, NaN stays NaN.

    Scaling the input does not change the result, and its gradient is finite everywhere.
    """
    axes = tuple(range(first, maps.ndim))
    low, high = jnp.min(maps, axes, keepdims=True), jnp.max(maps, axes, keepdims=True)
    span = high - low
    constant = span <= ROUNDING * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return jnp.where(constant, 0, (maps - low) / jnp.where(constant, 1, span))


def defined(values, where):
    """`values` where they mean something, and NaN elsewhere, as `0 / 0`.

    Where all of them do, no NaN is computed, and `jax_debug_nans` finds none.
    """
    known = where.astype(values.dtype)
    return jnp.where(where, values, known / known)  # no product: XLA makes of one with a truth value a choice of zero


def along(values, matrices, first: int):
    """Each of `matrices [new, old]` along its axis of `values`, the first one along the axis `first`; float32."""
    space, new = "abc"[: len(matrices)], "ABC"[: len(matrices)]
    before, after = "mnop"[:first], "wxyz"[: values.ndim - first - len(matrices)]
    terms = [f"{there}{here}" for there, here in zip(new, space, strict=True)]
    equation = ",".join([*terms, before + space + after]) + "->" + before + new + after
    return jnp.einsum(equation, *matrices, values.astype(jnp.float32), precision=EXACT)


@lru_cache(maxsize=256)
def _interpolation(size: int, new_size: int, align_corners: bool) -> np.ndarray:
    """The `[new_size, size]` matrix of linear interpolation along one axis, without antialiasing."""
    if align_corners:
        positions = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
    else:
        positions = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    positions = positions.clip(0, size - 1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size))).astype(np.float32)


def resize(maps, shape: tuple[int, ...], *, align_corners: bool = False):
    """Linear resize of the last axes of `maps [..., *space]` to `shape`, as one matrix product for each.

    Half-pixel centres as in OpenCV and `torch.nn.functional.interpolate`; with `align_corners` the corner samples
    coincide instead.
    """
    first = maps.ndim - len(shape)
    sizes = zip(maps.shape[first:], shape, strict=True)
    return along(maps, [_interpolation(old, new, align_corners) for old, new in sizes], first)


def nearest(maps, shape: tuple[int, ...]):
    """The last axes of `maps [..., *space]` at `shape`, each cell from the nearest one."""
    for axis, new in enumerate(shape, maps.ndim - len(shape)):
        maps = jnp.take(maps, np.arange(new) * maps.shape[axis] // new, axis=axis)
    return maps


def blur(images, sigma, border: str = "inside"):
    """`images [n, *space, c]` under a Gaussian of deviation `sigma` pixels, which may be traced; zero leaves them.

    Its weights are normalised `"inside"` the image; or the image goes on in `"zeros"`.
    """
    sigma = jnp.maximum(sigma, 1e-2)

    def weights(size):
        distance = jnp.asarray(np.subtract.outer(np.arange(size), np.arange(size)), jnp.float32)
        logits = -(distance**2) / (2 * sigma**2)
        return jax.nn.softmax(logits, axis=-1) if border == "inside" else jnp.exp(logits) / _weight(sigma)

    return along(images, [weights(size) for size in images.shape[1:-1]], 1)


def _weight(sigma):
    """`sum_k exp(-k^2 / 2 sigma^2)` over all whole numbers; for wide Gaussians it is the integral, to 1e-8."""
    near = jnp.arange(-8, 9, dtype=jnp.float32)
    return jnp.where(sigma < 1, jnp.sum(jnp.exp(-(near**2) / (2 * sigma**2))), sigma * np.sqrt(2 * np.pi).item())
