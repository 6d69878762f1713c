"""Several baselines, attributions without the factor of the image, what attributions miss; and Captum's noise."""

from functools import partial
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rules import golden_model

import jaxcam

GOLDEN = {}
for name in ("baselines", "rules"):
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        GOLDEN |= dict(file)
IMAGES, TARGETS = GOLDEN["images"], GOLDEN["targets"]
SEVERAL = GOLDEN["baselines"]
CAPTUM = {
    "deep_lift": partial(jaxcam.deep_lift, baseline=GOLDEN["baseline"]),
    "deep_lift_shap": partial(jaxcam.deep_lift, baseline=SEVERAL[None], chunk_size=6),
    "integrated_gradients": partial(jaxcam.integrated_gradients, baseline=GOLDEN["baseline"], num_steps=20),
    "gradient_shap": partial(jaxcam.expected_gradients, baselines=SEVERAL, num_samples=9, key=jax.random.key(3)),
}


@pytest.mark.parametrize(("name", "method"), CAPTUM.items(), ids=CAPTUM)
def test_captum(name, method):
    """Attributions, multipliers and deltas; those of DeepLIFT are rounding here and there."""

    @jax.jit
    def run(model):
        return [method(model, IMAGES, TARGETS, multiply_by_inputs=each, return_delta=True) for each in (True, False)]

    (attributions, deltas), (multipliers, same) = run(golden_model())
    for found, expected in ((attributions, GOLDEN[name]), (multipliers, GOLDEN[f"{name}_multipliers"])):
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(attributions - multipliers).max() > 0.1 * np.abs(attributions).max()
    np.testing.assert_allclose(deltas, GOLDEN[f"{name}_delta"], atol=5e-6)
    np.testing.assert_array_equal(deltas, same)


NOISE = {"deviation": 0.3, "num_samples": 9, "key": jax.random.key(3)}
GRADIENTS = {
    "input_x_gradient": jaxcam.input_x_gradient,
    "smooth_grad": partial(jaxcam.smooth_grad, **NOISE),
    "smooth_grad_squared": partial(jaxcam.smooth_grad_squared, **NOISE),
    "var_grad": partial(jaxcam.var_grad, **NOISE),
}


@pytest.mark.parametrize(("name", "method"), GRADIENTS.items(), ids=GRADIENTS)
def test_captum_of_gradients(name, method):
    found = method(golden_model(), IMAGES, TARGETS)
    np.testing.assert_allclose(found, GOLDEN[name], atol=2e-5 * np.abs(GOLDEN[name]).max())


FIRST, SECOND = np.split(np.random.default_rng(9).normal(size=(6 * 8 * 3 + 4, 20)).astype(np.float32), [6 * 8 * 3])


def model(images):
    return jnp.tanh(images.reshape(images.shape[0], -1) @ FIRST / 9) @ SECOND.T


PIXELS, OTHERS = helpers.images(2, 6, 8), helpers.images(3, 6, 8, seed=5)
SEGMENTS = {"segments": jaxcam.segments.grid((6, 8), 3)}
MEANS = {  # what is a mean of scores or of gradients is one over baselines
    jaxcam.deep_lift: {},
    jaxcam.integrated_gradients: {"num_steps": 6},
    jaxcam.occlusion: {"window": 3},
    jaxcam.feature_ablation: SEGMENTS,
    jaxcam.lime: {"num_samples": 20, **SEGMENTS},
    jaxcam.kernel_shap: {"num_samples": 20, **SEGMENTS},
    jaxcam.shapley_sampling: {"num_samples": 2, **SEGMENTS},
}


@pytest.mark.parametrize(("method", "options"), MEANS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_several_baselines_are_their_mean(method, options):
    """For all images alike, and for each its own: the second image has those of the first in another order."""
    own = jnp.stack([OTHERS, OTHERS[::-1]])

    @jax.jit
    def run(images):
        explain = partial(method, model, images, 1, **options)
        several = [explain(baseline=each, chunk_size=5) for each in (OTHERS[None], own)]
        return several, sum(explain(baseline=each) for each in OTHERS) / 3

    (shared, each), mean = run(PIXELS)
    for found in (shared, each):
        np.testing.assert_allclose(found, mean, atol=2e-5 * np.abs(mean).max())


@pytest.mark.parametrize("method", [jaxcam.sobol, jaxcam.rise])
def test_ratios_are_of_the_mean_score(method):
    """No means of ratios: of a linear score, the mean over baselines is that of the mean baseline."""
    weights = FIRST[:, 0].reshape(6, 8, 3)

    @jax.jit
    def run(baseline):
        linear = lambda images: (images * weights).sum((1, 2, 3))[:, None]  # noqa: E731
        return method(linear, PIXELS, 1, baseline=baseline, num_samples=8)

    found, each = run(OTHERS[None]), [run(one[None, None]) for one in OTHERS]
    np.testing.assert_allclose(found, run(OTHERS.mean(0)[None, None]), atol=1e-4 * found.max())
    assert np.abs(found - sum(each) / 3).max() > 0.03 * found.max()


@pytest.mark.parametrize("method", [partial(jaxcam.integrated_gradients, num_steps=3), jaxcam.deep_lift])
def test_deltas_of_targets_and_baselines(method):
    """What the attributions miss of each: with a delta of their own for each target and each baseline."""
    targets = jnp.array([[0, 3], [2, 1]])

    @jax.jit
    def run(baseline):
        return method(model, PIXELS, targets, baseline=baseline, return_delta=True)

    attributions, deltas = run(OTHERS[None])
    before = jnp.take(model(OTHERS), targets, axis=1)  # [m, n, t]
    after = jnp.take_along_axis(model(PIXELS), targets, 1)
    missed = attributions.sum((2, 3, 4)) - (after - before.mean(0))
    assert deltas.shape == (2, 2, 3)
    np.testing.assert_allclose(deltas.mean(-1), missed, atol=1e-5)
    np.testing.assert_allclose(run(OTHERS[2])[1], deltas[..., 2], atol=1e-5)


def test_deltas_of_noisy_copies():
    """Each copy's own: without noise they are all the image's."""
    method = partial(jaxcam.integrated_gradients, num_steps=2)

    @partial(jax.jit, static_argnums=0)
    def run(noise):
        options = {"method": method, "num_samples": 5, "chunk_size": 4, "noise": noise}
        averages = jaxcam.smooth_grad, jaxcam.var_grad
        return [(a(model, PIXELS, 1, **options), *a(model, PIXELS, 1, return_delta=True, **options)) for a in averages]

    _, own = method(model, PIXELS, 1, return_delta=True)
    for (_, _, still), (plain, maps, noisy) in zip(run(0.0), run(0.1), strict=True):
        np.testing.assert_allclose(still, np.repeat(own[:, None], 5, 1), atol=1e-6)
        assert noisy.shape == (2, 5) and np.ptp(noisy, axis=1).min() > 1e-4
        np.testing.assert_allclose(maps, plain, atol=1e-6)


def test_errors(as_user):
    with pytest.raises(ValueError, match=r"images \(2, 6, 8, 3\). Several baselines are \[1, m, 6, 8, 3\]"):
        jaxcam.deep_lift(model, PIXELS, 1, baseline=OTHERS)
    for wrong in (jnp.stack([OTHERS] * 3), jnp.zeros((1, 0, 6, 8, 3)), jnp.zeros((1, 3, 1, 1, 3))):
        with pytest.raises(ValueError, match="baseline has shape"):
            jaxcam.rise(model, PIXELS, 1, baseline=wrong)
    with pytest.raises(ValueError, match="baseline has shape"):
        jaxcam.guided_integrated_gradients(model, PIXELS, 1, baseline=OTHERS[None])
    with pytest.raises(ValueError, match="return_delta is True, and saliency has no deltas"):
        jaxcam.smooth_grad(model, PIXELS, 1, return_delta=True)
