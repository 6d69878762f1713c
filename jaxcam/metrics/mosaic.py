"""Mosaics: pictures of several classes side by side, so that it is known where the evidence for one of them is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import defined
from jaxcam._checks import functions, is_known, random_key
from jaxcam._typing import Images, Key, Targets
from jaxcam.metrics._altered import Model, prepare_method
from jaxcam.metrics._checks import Values, check_maps
from jaxcam.metrics.localization import energy_pointing_game


def focus(method: Callable, model: Model, images: Images, targets: Targets = None, *, key: Key = 0) -> Values:
    """Focus: the share of a map's positive mass that lies on the images of the explained class, in a mosaic of four.

    `focus = sum_{tiles of the class} relu(map) / sum relu(map)`, of `method(model, mosaic, class)`; a half is chance.

    The mosaic of an image is twice as long along each axis: half of its tiles are the image and another one of its
    class (itself, where there is none), the others images of other classes, in random order. It is the energy-based
    pointing game on mosaics; for mosaics of your own call that.

    Args:
      method: `(model, images, targets) -> maps`; channels are summed.
      model: what the method takes, for images of twice the sides too.
      images: `float[n, *space, c]`, of two classes or more.
      targets: `int[n]`, their classes, or `None` for the classes that the model predicts.
      key: a seed or a key.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: images or targets of a wrong shape, type or range; images of one class alone (inside `jit` that gives
        NaN).

    Reference: Arias-Duart et al. 2022, Focus! Rating XAI Methods and Finding Biases, https://arxiv.org/abs/2109.15035

    Example:
      >>> values = jaxcam.metrics.focus(jaxcam.grad_cam, model, jnp.concatenate([images, -images]), jnp.array([3, 5]))
    """
    functions(method=method)
    model, images, targets = prepare_method(model, images, targets)
    if is_known(targets) and len(np.unique(np.asarray(targets))) < 2:
        raise ValueError("All images are of one class; a mosaic needs images of other classes, too.")
    mosaics, masks = _mosaics(images, targets, random_key(key))
    maps = check_maps(method(model, mosaics, targets), "The result of `method`")
    return _share_of_class(maps.sum(-1) if maps.ndim == images.ndim else maps, masks, targets)


@jax.jit
def _share_of_class(maps, masks, targets):
    several = (targets != targets[:1]).any()
    return defined(energy_pointing_game(maps, masks), several)


@jax.jit
def _mosaics(images, targets, key):
    """For each image a mosaic, and where in it its class is."""
    n, axes = images.shape[0], images.ndim - 2
    half, key_of_images, key_of_places = 2 ** (axes - 1), *jax.random.split(key)
    chance = jax.random.uniform(key_of_images, (n, n), jnp.float32)
    alike, itself = targets[:, None] == targets, jnp.eye(n, dtype=bool)
    # Itself first, then its class, in random order; where that is too small it begins anew.
    own = jnp.argsort(jnp.where(itself, 2, jnp.where(alike, chance, -1)), -1, descending=True)
    others = jnp.argsort(jnp.where(alike, -1, chance), -1, descending=True)
    places, counts = jnp.arange(half), alike.sum(-1, keepdims=True)
    tiles = [
        jnp.take_along_axis(own, places % counts, -1),
        jnp.take_along_axis(others, places % jnp.maximum(n - counts, 1), -1),
    ]
    order = jax.vmap(lambda key: jax.random.permutation(key, 2 * half))(jax.random.split(key_of_places, n))
    tiles = jnp.take_along_axis(jnp.concatenate(tiles, -1), order, -1)
    masks = jnp.broadcast_to((order < half).reshape(n, 2 * half, *(1,) * axes), (n, 2 * half, *images.shape[1:-1]))
    return _laid(images[tiles], axes), _laid(masks[..., None], axes)[..., 0]


def _laid(tiles, axes: int):
    """`[n, 2^axes, *space, c]` as `[n, *(2 space), c]`."""
    n, _, *space, channels = tiles.shape
    tiles = tiles.reshape(n, *(2,) * axes, *space, channels)
    order = [place for axis in range(axes) for place in (1 + axis, 1 + axes + axis)]
    return tiles.transpose(0, *order, 2 * axes + 1).reshape(n, *(2 * side for side in space), channels)
