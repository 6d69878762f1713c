"""Attribution to hidden layers and to neurons: the two halves of a tap under the methods there are, against Captum.

`golden/layers.npz` holds what `golden/make_layers.py` computed, with the model's weights. The recipes of conductance
and internal influence are those of `docs/hidden-layers.md`, whose code runs here.
"""

import re
from functools import cache
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

HERE = Path(__file__).parent
LAYERS = ("conv1", "conv2", "fc")
TARGETS, NUM_STEPS, NEURON = np.array([2, 0]), 12, (2, 4, 3)  # row, column, channel


class Early(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(x)


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Early(name="early")(nn.Conv(5, (3, 3), padding=1, name="conv1")(x))
        return nn.Dense(4, name="fc")(nn.softplus(nn.Conv(6, (3, 3), 2, padding=1, name="conv2")(x)).mean((1, 2)))


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(HERE / "golden" / "layers.npz") as file:
        return dict(file)


@cache
def given():
    """The tap, the images and the baseline."""
    stored = jax.tree.map(jnp.asarray, golden())
    params = {name: {each: stored[f"{name}/{each}"] for each in ("kernel", "bias")} for name in LAYERS}
    return jaxcam.tap(Tiny(), {"params": params}, "early"), stored["images"], stored["baseline"]


@cache
def recipes() -> dict:
    """What the page defines."""
    page = (HERE.parent / "docs" / "hidden-layers.md").read_text()
    scope = {"jax": jax, "jnp": jnp, "np": np, "jaxcam": jaxcam}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if block.lstrip().startswith("def "):
            exec(compile(block, "hidden-layers.md", "exec"), scope)
    return scope


def layer_integrated_gradients(tap, images, baseline):
    start = tap.features(baseline)
    return jaxcam.integrated_gradients(
        tap.head(images), tap.features(images), TARGETS, baseline=start, num_steps=NUM_STEPS
    )


def gradient_x_activation(tap, images, baseline):
    return jaxcam.input_x_gradient(tap.head(images), tap.features(images), TARGETS)


def neuron_gradient(tap, images, baseline):
    return jaxcam.saliency(tap.features, images, 0, score=jaxcam.score.neuron(*NEURON))


def neuron_integrated_gradients(tap, images, baseline):
    score = jaxcam.score.neuron(*NEURON)
    return jaxcam.integrated_gradients(tap.features, images, 0, score=score, baseline=baseline, num_steps=NUM_STEPS)


def conductance(tap, images, baseline):
    return recipes()["conductance"](tap, images, TARGETS, baseline)


def internal_influence(tap, images, baseline):
    return recipes()["internal_influence"](tap, images, TARGETS, baseline, num_steps=NUM_STEPS)


CASES = {
    "integrated_gradients": (layer_integrated_gradients, 1e-5),
    "gradient_x_activation": (gradient_x_activation, 1e-5),
    "neuron_gradient": (neuron_gradient, 1e-5),
    "neuron_integrated_gradients": (neuron_integrated_gradients, 1e-5),
    "internal_influence": (internal_influence, 1e-5),
    "conductance": (conductance, 1e-4),
}


@pytest.mark.parametrize("name", CASES)
def test_captum_gives_the_same_numbers(name):
    function, tolerance = CASES[name]
    expected = golden()[name]
    found = function(*given())
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_a_layers_attributions_sum_to_the_difference_of_the_scores():
    """Completeness, also where the layer is inside: by integrated gradients at the layer, and by conductance."""
    tap, images, baseline = given()
    scores = [jaxcam.score.logit(tap(each), jnp.asarray(TARGETS)) for each in (images, baseline)]
    for function in (layer_integrated_gradients, conductance):
        np.testing.assert_allclose(function(tap, images, baseline).sum((1, 2, 3)), scores[0] - scores[1], atol=1e-5)


def test_a_layers_conductance_sums_exactly_across_a_kink_of_the_layer():
    """What the layer changes counts, wherever within a step it bends: a ReLU of a falling and a rising unit."""

    def features(_, images):
        return jax.nn.relu(images[:, :1] * jnp.array([1.0, -1.0]) + jnp.array([-0.37, 0.81]))

    tap = jaxcam.tap((features, lambda _, x: x.sum((1, 2))[:, None] * jnp.array([3.0, 1.0])), None)
    images = jnp.ones((1, 2, 1))
    found = recipes()["conductance"](tap, images, 0, jnp.zeros_like(images), num_steps=5)
    np.testing.assert_allclose(found[0, 0], [3 * 0.63, -3 * 0.81], rtol=1e-6)


def test_a_units_conductance_from_the_image_sums_to_its_own():
    """Through one unit, or through a channel's units together."""
    tap, images, baseline = given()
    units = recipes()["conductance"](tap, images, TARGETS, baseline)
    for index in (NEURON, (..., NEURON[-1])):
        neuron = jaxcam.score.neuron(*index)
        found = jax.jit(recipes()["neuron_conductance"])(tap, images, TARGETS, baseline, neuron)
        assert found.shape == images.shape
        np.testing.assert_allclose(found.sum((1, 2, 3)), neuron(units, None), rtol=1e-3)


@pytest.mark.parametrize("method", [jaxcam.smooth_grad, jaxcam.occlusion, jaxcam.deep_lift, jaxcam.lrp, jaxcam.rise])
def test_a_head_is_a_model_for_every_method(method):
    """A head is compiled like a tap, and its images are repeated with what a layer returned for them."""
    parts = [nn.Conv(3, (3, 3)), nn.relu, nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(4)]
    module = nn.Sequential(parts)
    images = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    variables = module.init(jax.random.key(1), images)
    tap = jaxcam.tap(module, variables, "layers_0")
    features = tap.features(images)
    options = {"num_samples": 4} if method in (jaxcam.smooth_grad, jaxcam.rise) else {}
    upper = nn.Sequential(module.layers[1:])
    params = {f"layers_{int(name[-1]) - 1}": each for name, each in variables["params"].items() if name != "layers_0"}
    alone = jaxcam.tap(upper, {"params": params}, "layers_1")
    expected = method(alone, features, 1, **options)
    np.testing.assert_allclose(method(tap.head(images), features, 1, **options), expected, rtol=1e-4, atol=1e-6)
