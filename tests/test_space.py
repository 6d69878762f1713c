"""Signals and volumes: every method on one and three axes of space, against the same content on two."""

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
TARGETS = jnp.array([2, 0], jnp.int32)


class AlongOneAxis(nn.Module):
    """A network that only looks along the axis `axis` of space, so that the others may be added or left out."""

    space: int
    axis: int
    pooled: bool = False

    @nn.compact
    def __call__(self, x):
        window = tuple(3 if axis == self.axis else 1 for axis in range(self.space))
        x = nn.relu(nn.Conv(5, window, name="early")(x))
        x = helpers.Relu(name="late")(nn.Conv(6, window, name="conv")(x))
        if self.pooled:
            return nn.Dense(4, name="head")(x.mean(range(1, x.ndim - 1)))
        x = nn.tanh(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(4, name="head")(x)


def tapped(space, axis, pooled):
    """The same network on the same content, whatever the axes; the weights are those for a signal of 12 samples."""
    signal = jnp.zeros((1, 12, 3))
    variables = AlongOneAxis(1, 0, pooled).init(jax.random.key(0), signal)
    window = tuple(3 if each == axis else 1 for each in range(space))

    def reshaped(path, leaf):
        is_convolution = path[1].key in ("early", "conv") and leaf.ndim == 3
        return leaf.reshape(*window, *leaf.shape[-2:]) if is_convolution else leaf

    variables = jax.tree.map_with_path(reshaped, variables)
    return jaxcam.tap(AlongOneAxis(space, axis, pooled), variables, "late")


SIGNALS = jax.random.normal(jax.random.key(1), (2, 12, 3))
OPTIONS = {"occlusion": {"window": 4, "stride": 2}, "xrai": {"num_steps": 2}}


# What draws numbers for each axis of space draws others where there are more of them, and a mirror has its axis.
DRAWN = ("rise", "xrai", "aug_smooth")


def explain(method, space, axis, signals):
    """The map of signals that lie along one axis of space, whose others are of one pixel."""
    shape = tuple(12 if each == axis else 1 for each in range(space))
    options = {**method.options, **OPTIONS.get(method.name, {})}
    for name in ("window", "stride"):
        if name in options:
            options[name] = tuple(options[name] if each == axis else 1 for each in range(space))
    result = method.function(tapped(space, axis, method.pooled), signals.reshape(2, *shape, 3), TARGETS, **options)
    assert result.dtype == jnp.float32 and result.shape[: 1 + space] == (2, *shape)
    return result.reshape(2, 12, -1)


def of_one_pixel(method, image):
    module = AlongOneAxis(2, 1, method.pooled)
    model = jaxcam.tap(module, jax.jit(module.init)(jax.random.key(0), image), "late")
    options = {name: value for name, value in method.options.items() if name != "window"}
    return method.function(model, image, TARGETS, **options)


@pytest.mark.parametrize("method", ROWS)
def test_signals_and_volumes_are_images_of_other_shapes(method):
    """And an image of a single pixel has a map without NaN. All in one program."""

    @jax.jit
    def programs(signals):
        maps = [explain(method, space, axis, signals) for space, axis in ((2, 0), (1, 0), (3, 1))]
        return *maps, of_one_pixel(method, signals[:, :1, None])

    image, signal, volume, pixel = map(np.asarray, programs(SIGNALS))
    assert np.isfinite(signal).all() and np.isfinite(volume).all() and np.abs(signal).max() > 0
    assert pixel.shape[:3] == (2, 1, 1) and np.isfinite(pixel).all()
    if method.name not in DRAWN:
        np.testing.assert_allclose(signal, image, atol=2e-5 * np.abs(image).max())
        np.testing.assert_allclose(volume, image, atol=2e-5 * np.abs(image).max())


@pytest.mark.parametrize("name", ["occlusion", "feature_ablation", "rise", "lime", "xrai", "blur_integrated_gradients"])
@pytest.mark.parametrize("shape", [(3, 3), (1, 3)])
def test_images_of_a_few_pixels(name, shape):
    """Where windows, patches and blurs are made for the image; never an error from inside of a reduction."""
    [method] = [each for each in helpers.METHODS if each.name == name]
    module, images = AlongOneAxis(2, 1), jax.random.normal(jax.random.key(2), (2, *shape, 3))
    model = jaxcam.tap(module, module.init(jax.random.key(0), images), "late")
    options = {name: value for name, value in method.options.items() if name != "window"}
    result = method.function(model, images, TARGETS, **options)
    assert result.shape[:3] == (2, *shape) and bool(jnp.isfinite(result).all())
