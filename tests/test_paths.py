"""Path methods and averages over noise, on functions whose answer is known in closed form."""

from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

import jaxcam
from jaxcam._array import blur

GOLDEN = Path(__file__).parent / "golden" / "xrai.npz"
SHAPE = (5, 7, 3)
WEIGHTS = jax.random.normal(jax.random.key(1), SHAPE)


def linear(images):
    return (images * WEIGHTS).sum((1, 2, 3))[:, None]


def square(images):
    return (WEIGHTS * images**2).sum((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def images():
    return helpers.images(2, *SHAPE[:2])


def close(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found, expected, atol=rtol * float(np.abs(expected).max()))


# ------------------------------------------------------------------------------------------------- expected gradients


def test_expected_gradients_of_a_linear_model(images):
    """Weights times the distance to the baseline, whatever is drawn; with several baselines, to their mean."""
    close(jaxcam.expected_gradients(linear, images, 1, baselines=0.3, num_samples=4), WEIGHTS * (images - 0.3))
    baselines = helpers.images(3, *SHAPE[:2], seed=7)
    found = jaxcam.expected_gradients(linear, images, 1, baselines=baselines, num_samples=3000, chunk_size=500)
    close(found, WEIGHTS * (images - baselines.mean(0)), 0.05)
    own = jnp.stack([baselines, 1 + baselines, 2 * baselines])[: len(images)]
    found = jaxcam.expected_gradients(linear, images, 1, baselines=own, num_samples=3000, chunk_size=500)
    close(found, WEIGHTS * (images - own.mean(1)), 0.05)


def test_expected_gradients_with_baselines_of_each_image_are_those_of_each_alone():
    model, images = helpers.small(), helpers.images()
    own = jnp.stack([helpers.images(4, seed=seed) for seed in range(len(images))])
    options = {"num_samples": 6, "return_delta": True}
    found = jaxcam.expected_gradients(model, images, 1, baselines=own, **options)
    for i, alone in enumerate(own):
        expected = jaxcam.expected_gradients(model, images[i : i + 1], 1, baselines=alone, **options)
        for each, one in zip(found, expected, strict=True):
            close(each[i], one[0])


def test_expected_gradients_with_one_baseline_are_integrated_gradients():
    """The places are stratified, so they come close with few samples."""
    model, images, baseline = helpers.small(), helpers.images(), helpers.images(1, seed=5)
    found = jaxcam.expected_gradients(model, images, 1, baselines=baseline, num_samples=2000)
    close(found, jaxcam.integrated_gradients(model, images, 1, baseline=baseline, num_steps=300), 0.02)
    close(found.sum((1, 2, 3)), model(images)[:, 1] - model(baseline)[:, 1], 0.01)


def test_expected_gradients_of_noise_follow_the_key(images):
    first, again, other = (
        jaxcam.expected_gradients(square, images, 1, num_samples=5, key=jax.random.key(key)) for key in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


# ------------------------------------------------------------------------------------------- blur integrated gradients


def test_blur_integrated_gradients_of_a_linear_model_are_what_the_blur_takes():
    """Compared with SciPy's Gaussian filter on a spot far from the border."""
    weights = jax.random.normal(jax.random.key(2), (21, 23, 3))
    image = np.zeros((1, 21, 23, 3), np.float32)
    image[0, 9:12, 10:14] = np.random.default_rng(0).normal(size=(3, 4, 3))
    blurred = scipy.ndimage.gaussian_filter(image, (0, 1.5, 1.5, 0), truncate=6)

    def model(images):
        return (images * weights).sum((1, 2, 3))[:, None]

    found = jaxcam.blur_integrated_gradients(model, image, 1, max_sigma=1.5, num_steps=3)
    close(found, weights * (image - blurred), 1e-4)


def test_blur_integrated_gradients_are_complete():
    """They sum to the score of the image less that of a blurred one: after a strong blur, its mean colour."""
    model, images = helpers.small(), helpers.images()
    found = jaxcam.blur_integrated_gradients(model, images, 2, max_sigma=100.0, num_steps=400)
    flat = jnp.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)
    difference = (model(images) - model(flat))[:, 2]
    assert float(jnp.abs(difference).min()) > 0.01
    close(found.sum((1, 2, 3)), difference, 0.02)
    np.testing.assert_allclose(jaxcam.blur_integrated_gradients(model, jnp.ones_like(images), 2), 0, atol=1e-4)


@pytest.mark.parametrize("border", ["inside", "zeros"])
def test_blur_integrated_gradients_are_those_of_the_papers_authors(border):
    """With as many steps; what is left is between the sums: midpoints here, left ends there."""
    with np.load(GOLDEN) as file:
        image, weights, expected = (file[name] for name in ("small", "thin", f"blur_{border}"))

    def model(images):
        return jnp.tanh((images * weights).sum((1, 2, 3)))[:, None]

    options = {"max_sigma": 3.0, "num_steps": 300, "border": border}
    [found] = jaxcam.blur_integrated_gradients(model, image[None], 1, **options)
    close(found, expected, 1e-3)
    other = {"inside": "zeros", "zeros": "inside"}[border]
    [found] = jaxcam.blur_integrated_gradients(model, image[None], 1, **{**options, "border": other})
    assert np.abs(found - expected).max() > 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("sigma", [0.0, 0.4, 0.9, 1.1, 3.0, 30.0])
def test_the_blur_is_scipys(images, sigma):
    """Where the image goes on in zeros, its Gaussian to eight deviations; else that over the blurred ones."""
    zeros, ones = (scipy.ndimage.gaussian_filter(each, (0, sigma, sigma, 0), mode="constant", truncate=8)
                   for each in (np.asarray(images), np.ones(images.shape, np.float32)))  # fmt: skip
    close(blur(images, sigma, "zeros"), zeros, 2e-5)
    close(blur(images, sigma), zeros / ones, 2e-5)


# ----------------------------------------------------------------------------------------- guided integrated gradients


@pytest.mark.parametrize("options", [{}, {"fraction": 1.0}, {"max_distance": 0.1}], ids=str)
def test_guided_integrated_gradients_are_complete(options):
    model, images, baseline = helpers.small(), helpers.images(), helpers.images(seed=5)
    found = jaxcam.guided_integrated_gradients(model, images, 1, baseline=baseline, num_steps=400, **options)
    difference = (model(images) - model(baseline))[:, 1]
    assert float(jnp.abs(difference).min()) > 0.01
    close(found.sum((1, 2, 3)), difference, 0.05)


@pytest.mark.parametrize(("fraction", "distance"), [(0.25, 0.02), (0.25, 0.2), (0.6, 0.2)])
def test_guided_integrated_gradients_are_those_of_the_papers_authors(fraction, distance):
    """The same path; what is left of a thousand steps is between the sums: trapezoids here, left ends there."""
    with np.load(GOLDEN) as file:
        image, weights, others = (jnp.asarray(file[name]) for name in ("small", "thin", "others"))
        expected = file[f"guided_{fraction}_{distance}"]

    def model(images):
        first, second = ((images * each).sum((1, 2, 3)) for each in (weights, others))
        return (jnp.tanh(first) + second**2 / 2)[:, None]

    options = {"num_steps": 1000, "fraction": fraction, "max_distance": distance}
    [found] = jaxcam.guided_integrated_gradients(model, image[None], 1, **options)
    close(found, expected, 2e-3)


def test_guided_integrated_gradients_of_a_linear_model(images):
    """Every path gives weights times distance."""
    found = jaxcam.guided_integrated_gradients(linear, images, 1, baseline=0.2, num_steps=9)
    close(found, WEIGHTS * (images - 0.2), 1e-4)


def test_the_guided_path_takes_the_quiet_way():
    """`f(x, y) = x y` from (0, 0) to (1, 1): the pixel with the smaller gradient moves first, while nothing is lost.

    Unrestrained, the path runs along one axis, where the gradient of the moving pixel is zero, and then up the other:
    all of the difference falls to the pixel that moves last.
    """

    def model(images):
        return (images[:, 0, 0, 0] * (images[:, 0, 1, 0] + 0.001))[:, None]  # the second pixel is the quieter at (0, 0)

    image = jnp.ones((1, 1, 2, 1))
    options = {"num_steps": 100, "fraction": 0.5}
    free = jaxcam.guided_integrated_gradients(model, image, 1, max_distance=1.0, **options).ravel()
    np.testing.assert_allclose(free, [1, 0], atol=0.02)
    tied = jaxcam.guided_integrated_gradients(model, image, 1, max_distance=1e-4, **options).ravel()
    np.testing.assert_allclose(tied, [0.5, 0.5], atol=0.02)


# ------------------------------------------------------------------------------------------------------ noisy averages


def test_noise_changes_no_linear_model(images):
    weights = jnp.broadcast_to(WEIGHTS, images.shape)
    close(jaxcam.smooth_grad(linear, images, 1, num_samples=3), weights)
    close(jaxcam.smooth_grad_squared(linear, images, 1, num_samples=3), weights**2)
    np.testing.assert_allclose(jaxcam.var_grad(linear, images, 1, num_samples=3), 0, atol=1e-5)


def test_moments_of_a_quadratic_model(images):
    """The gradient `2 w (x + e)` has mean `2 w x` and variance `4 w^2 sigma^2`, sigma in units of the image's range."""
    options = {"noise": 0.1, "num_samples": 4000, "chunk_size": 1000}
    sigma = 0.1 * np.ptp(images, axis=(1, 2, 3), keepdims=True)
    mean, variance = 2 * WEIGHTS * images, 4 * WEIGHTS**2 * sigma**2
    close(jaxcam.smooth_grad(square, images, 1, **options), mean, 0.02)
    np.testing.assert_allclose(jaxcam.var_grad(square, images, 1, **options), variance, rtol=0.15)
    close(jaxcam.smooth_grad_squared(square, images, 1, **options), mean**2 + variance, 0.03)


def test_without_noise_they_are_the_method():
    model, images = helpers.small(), helpers.images()
    plain = jaxcam.grad_cam(model, images, 1)
    close(jaxcam.smooth_grad(model, images, 1, method=jaxcam.grad_cam, noise=0.0, num_samples=2), plain)
    close(jaxcam.smooth_grad_squared(model, images, 1, method=jaxcam.grad_cam, noise=0.0, num_samples=2), plain**2)


def test_argument_errors(as_user, images):
    with pytest.raises(ValueError, match="noise is -1; it must be at least 0"):
        jaxcam.smooth_grad(linear, images, 1, noise=-1)
    with pytest.raises(ValueError, match="max_sigma is 0; it must be above 0"):
        jaxcam.blur_integrated_gradients(linear, images, 1, max_sigma=0)
    with pytest.raises(ValueError, match="fraction is 2; it must be above 0 and at most 1"):
        jaxcam.guided_integrated_gradients(linear, images, 1, fraction=2)
    with pytest.raises(ValueError, match="Unknown border 'zero'. Did you mean 'zeros'?"):
        jaxcam.blur_integrated_gradients(linear, images, 1, border="zero")
    with pytest.raises(ValueError, match="must be a number, an array \\[m, 5, 7, 3\\] or \\[2, m, 5, 7, 3\\], or None"):
        jaxcam.expected_gradients(linear, images, 1, baselines=jnp.zeros((2, 5, 7, 1)))
