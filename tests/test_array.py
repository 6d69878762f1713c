"""Array operations against independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from jaxcam._array import normalize, resize


def test_normalize():
    maps = jnp.array([[[1.0, 3.0], [2.0, 5.0]], [[-1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(normalize(maps), [[[0, 0.5], [0.25, 1]], [[0, 0.5], [0.5, 1]]])


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-20, 1e30])
def test_normalize_constant(value):
    """Zeros, also where the map is constant only up to rounding, and a gradient of zeros."""
    maps = jnp.full((2, 3, 4), value) * (1 + 1e-7 * jax.random.normal(jax.random.key(0), (2, 3, 4)))
    np.testing.assert_array_equal(normalize(maps), 0)
    assert bool(jnp.isfinite(jax.grad(lambda x: normalize(x).sum())(maps)).all())


def test_normalize_is_free_of_scale():
    maps = jax.random.uniform(jax.random.key(0), (1, 3, 4))
    np.testing.assert_allclose(normalize(1e-12 * maps), normalize(maps), rtol=1e-5)


def test_normalize_keeps_nan():
    maps = jnp.ones((2, 3, 4)).at[1, 0, 0].set(jnp.nan)
    assert bool(jnp.isnan(normalize(maps)[1]).all()) and not bool(jnp.isnan(normalize(maps)[0]).any())


@pytest.mark.parametrize("shape", [(14, 21), (4, 5), (9, 5), (4, 50)])
def test_resize_up_is_pillows(shape):
    maps = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    expected = [PIL.Image.fromarray(each).resize(shape[::-1], PIL.Image.Resampling.BILINEAR) for each in maps]
    np.testing.assert_allclose(resize(maps, shape), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("new_size", [1, 3, 7, 12])
def test_resize_is_interpolation_at_the_right_places(new_size, align_corners):
    """Also when it shrinks: no antialiasing, as in OpenCV and `torch.nn.functional.interpolate`."""
    values = np.random.default_rng(0).normal(size=7).astype(np.float32)
    half_pixel = (np.arange(new_size) + 0.5) * 7 / new_size - 0.5
    places = np.arange(new_size) * 6 / max(new_size - 1, 1) if align_corners else half_pixel
    expected = np.interp(places, np.arange(7), values)
    np.testing.assert_allclose(resize(values[None], (1, new_size), align_corners=align_corners)[0], expected, atol=1e-6)
    columns = resize(values[:, None], (new_size, 1), align_corners=align_corners)
    np.testing.assert_allclose(columns[:, 0], expected, atol=1e-6)
