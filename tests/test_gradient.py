"""Gradient methods: axioms, oracles and published numbers."""

from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam._array import normalize


def test_saliency_is_the_gradient():
    model, images = helpers.small(), helpers.images()
    targets = jnp.array([0, 3, 1])
    expected = jnp.stack(
        [jax.grad(lambda x, t=t: model(x[None])[0, t])(image) for image, t in zip(images, targets, strict=True)]
    )
    np.testing.assert_allclose(jaxcam.saliency(model, images, targets), expected, atol=1e-7)


def test_saliency_of_a_linear_model_is_its_weights():
    weights = jax.random.normal(jax.random.key(0), (4 * 5 * 3, 6))
    attributions = jaxcam.saliency(lambda x: x.reshape(len(x), -1) @ weights, helpers.images(2, 4, 5), 2)
    np.testing.assert_allclose(attributions, jnp.broadcast_to(weights[:, 2].reshape(4, 5, 3), (2, 4, 5, 3)))


def test_integrated_gradients_published_numbers():
    """Captum's BasicModel2 at (3, 1) from zero: relu(relu(3) - 1 - relu(1)) -> (1.5, -0.5)."""

    def model(images):
        first, second = images[:, 0, 0, 0], images[:, 0, 1, 0]
        return jax.nn.relu(jax.nn.relu(first) - 1 - jax.nn.relu(second))[:, None]

    image = jnp.array([3.0, 1.0]).reshape(1, 1, 2, 1)
    attributions = jaxcam.integrated_gradients(model, image, num_steps=500)
    np.testing.assert_allclose(attributions.ravel(), [1.5, -0.5], atol=5e-3)


@pytest.mark.parametrize("baseline", [None, 0.3, "noise"])
def test_integrated_gradients_completeness(baseline):
    """They sum to the score's difference between the image and the baseline."""
    model, images = helpers.small(), helpers.images()
    baseline = helpers.images(seed=5) if baseline == "noise" else baseline
    attributions = jaxcam.integrated_gradients(model, images, 1, baseline=baseline, num_steps=100)
    start = jnp.broadcast_to(jnp.asarray(0.0 if baseline is None else baseline), images.shape)
    difference = model(images)[:, 1] - model(start)[:, 1]
    np.testing.assert_allclose(attributions.sum((1, 2, 3)), difference, rtol=5e-3, atol=2e-3)
    assert float(jnp.abs(difference).min()) > 0.01  # so the tolerance means something


def test_integrated_gradients_of_a_polynomial_are_exact():
    """Gauss-Legendre with three points integrates the gradient of a quartic exactly: d/dx x^4 gives x^4 itself."""

    def model(images):
        return (images**4).sum((1, 2, 3))[:, None]

    images = helpers.images(2, 3, 4)
    attributions = jaxcam.integrated_gradients(model, images, num_steps=3)
    np.testing.assert_allclose(attributions, images**4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 30, 99])
def test_chunk_size_changes_nothing(chunk_size):
    model, images = helpers.small(), helpers.images()
    whole = jaxcam.integrated_gradients(model, images, num_steps=10, chunk_size=30)
    chunked = jaxcam.integrated_gradients(model, images, num_steps=10, chunk_size=chunk_size)
    np.testing.assert_allclose(chunked, whole, atol=1e-6)


def test_memory_is_flat_in_the_number_of_steps():
    model, images = helpers.small(shape=(32, 32)), helpers.images(1, 32, 32)

    def temporaries(num_steps):
        def explain(model, images):
            return jaxcam.integrated_gradients(model, images, num_steps=num_steps, chunk_size=5)

        return jax.jit(explain).lower(model, images).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(500) < 1.1 * temporaries(10)


def test_heatmap_sums_channels_and_scales():
    attributions = jnp.array([[[[1.0, -1.0], [0.0, 0.5]], [[-4.0, 2.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(jaxcam.heatmap(attributions, percentile=100)[0], [[2 / 6, 0.5 / 6], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(jaxcam.heatmap(attributions[..., 0], percentile=100)[0], [[0.25, 0], [1, 0]], atol=1e-6)
    np.testing.assert_array_equal(jaxcam.heatmap(jnp.full((1, 2, 2, 3), 5.0)), 0)


def test_heatmap_reads_the_axes_off_the_images():
    """Signals and volumes, with channels or without, and with an axis of targets."""
    for shape in ((6,), (3, 4), (2, 3, 4)):
        images = jax.random.normal(jax.random.key(0), (2, *shape, 3))
        summed = jnp.abs(images).sum(-1)
        expected = normalize(summed)
        found = partial(jaxcam.heatmap, images=images, percentile=100)
        np.testing.assert_allclose(found(images), expected, atol=1e-6)
        np.testing.assert_allclose(found(-summed), expected, atol=1e-6)
        several = jnp.stack([images, 2 * images[..., ::-1]], 1)
        np.testing.assert_allclose(found(several), jnp.stack([expected, expected], 1), atol=1e-6)
        np.testing.assert_allclose(found(several.sum(-1))[:, 0], normalize(jnp.abs(images.sum(-1))), atol=1e-6)
        with pytest.raises(ValueError, match="does not fit images"):
            found(images[:, :-1])


def test_heatmap_percentile_cuts_outliers():
    attributions = jnp.append(jnp.linspace(0, 1, 99), 1000).reshape(1, 10, 10)
    assert float(jaxcam.heatmap(attributions, percentile=100)[0, 5, 5]) < 0.001
    assert float(jaxcam.heatmap(attributions, percentile=95)[0, 5, 5]) > 0.5


def test_argument_errors(as_user):
    model, images = helpers.small(), helpers.images()
    with pytest.raises(ValueError, match="num_steps is 0; it must be a whole number, 1 or more"):
        jaxcam.integrated_gradients(model, images, num_steps=0)
    with pytest.raises(ValueError, match="chunk_size is 2.5"):
        jaxcam.integrated_gradients(model, images, chunk_size=2.5)
    with pytest.raises(ValueError, match="baseline has shape \\(2, 12, 16, 3\\), which does not fit"):
        jaxcam.integrated_gradients(model, images, baseline=jnp.zeros((2, 12, 16, 3)))
    with pytest.raises(ValueError, match="percentile is 0"):
        jaxcam.heatmap(images, percentile=0)
    with pytest.raises(ValueError, match="\\[n, h, w, c\\] or \\[n, h, w\\]"):
        jaxcam.heatmap(images[0, 0])


def test_few_pixels_that_hold_all_are_not_cut_away():
    attributions = jnp.zeros((1, 50, 50)).at[0, 20:24, 20:24].set(jnp.arange(1.0, 17).reshape(4, 4))
    np.testing.assert_allclose(jaxcam.heatmap(attributions, percentile=99), attributions / 16, rtol=1e-6)
