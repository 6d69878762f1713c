"""Sanity checks of methods: models changed in known ways, and methods that do or do not look at the model."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxcam
from jaxcam import metrics
from jaxcam.metrics.sanity import _top_down, shuffle, weights_below


class TwoStages(nn.Module):
    """Convolution with BatchNorm, then a head; called in the reverse of the alphabetical order."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), padding="VALID", name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


class Edges:
    """A method that never looks at the model, and one that looks at nothing but the head's weights."""

    calls: ClassVar[list] = []

    @staticmethod
    def image_only(model, images, targets):
        Edges.calls.append(np.asarray(targets))
        return jnp.abs(jnp.diff(images[..., 0], axis=1))

    @staticmethod
    def head_only(model, images, targets):
        kernel = model.variables["params"]["head"]["kernel"]
        return jnp.broadcast_to(kernel.T.ravel(), (len(images), kernel.size))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 8, 7, 2))


@pytest.fixture(scope="module")
def model(images):
    variables = TwoStages().init(jax.random.key(0), images)
    rng = np.random.default_rng(0)
    varied = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype), variables["batch_stats"])
    return jaxcam.tap(TwoStages(), {"params": variables["params"], "batch_stats": varied}, "stem")


@pytest.fixture(scope="module")
def cascade(model, images):
    return metrics.cascading_randomization(jaxcam.saliency, model, images, similarity=metrics.pearson)


def test_layers_go_from_the_output_down(cascade):
    assert list(cascade) == ["head", "norm", "stem"]
    assert all(each.shape == (3,) and each.dtype == jnp.float32 for each in cascade.values())
    assert all(float(jnp.abs(each).max()) < 0.9 for each in cascade.values())


def test_the_first_step_is_the_same_alone(model, images, cascade):
    alone = metrics.independent_randomization(jaxcam.saliency, model, images, similarity=metrics.pearson)
    assert list(alone) == ["head", "norm", "stem"]
    np.testing.assert_array_equal(alone["head"], cascade["head"])
    assert not np.allclose(alone["stem"], cascade["stem"], atol=1e-3)


def test_what_each_step_changes(model, images):
    """A method that reads one layer's weights sees just that layer change: for good in a cascade, else for one step."""
    options = {"layers": ["stem", "head", "norm"], "similarity": metrics.pearson}
    cascade = metrics.cascading_randomization(Edges.head_only, model, images, **options)
    assert float(cascade["stem"][0]) == pytest.approx(1) and float(cascade["head"][0]) < 0.9
    np.testing.assert_array_equal(cascade["norm"], cascade["head"])
    alone = metrics.independent_randomization(Edges.head_only, model, images, **options)
    np.testing.assert_allclose(alone["norm"], 1, atol=1e-6)
    np.testing.assert_array_equal(alone["head"], cascade["head"])


def test_running_statistics_are_randomized_and_other_draws_are_possible(model, images):
    seen = []

    def zeros(key, array):
        seen.append(array.shape)
        return jnp.zeros_like(array)

    metrics.independent_randomization(Edges.image_only, model, images, layers=["norm"], randomize=zeros)
    assert seen == [(4,)] * 4  # scale, bias, mean, variance


def test_a_method_that_ignores_the_model_never_changes(model, images):
    Edges.calls.clear()
    values = metrics.cascading_randomization(Edges.image_only, model, images)
    np.testing.assert_allclose(jnp.stack(list(values.values())), 1, atol=1e-6)
    expected = np.argmax(model(images), -1)
    assert len(Edges.calls) == 4  # the trained model's classes, for every model
    assert all((each == expected).all() for each in Edges.calls)


def test_keys(model, images):
    def one(seed):
        options = {"layers": ["head"], "key": jax.random.key(seed), "similarity": metrics.pearson}
        return metrics.independent_randomization(Edges.head_only, model, images, **options)["head"]

    np.testing.assert_array_equal(one(1), one(1))
    assert not np.allclose(one(1), one(2))


def test_shuffle_keeps_the_values():
    array = jnp.arange(12.0).reshape(3, 4)
    shuffled = shuffle(jax.random.key(0), array)
    assert shuffled.shape == (3, 4) and not np.array_equal(shuffled, array)
    np.testing.assert_array_equal(np.sort(shuffled.ravel()), array.ravel())


def test_nnx_models_are_randomized_too(images):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(2, 3, (3, 3), rngs=rngs)
            self.head = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.stem(x)).mean((1, 2)))

    model = jaxcam.tap(Model(nnx.Rngs(0)), None, "stem")
    values = metrics.cascading_randomization(jaxcam.saliency, model, images, similarity=metrics.pearson)
    assert list(values) == ["head", "stem"]
    assert float(jnp.abs(values["stem"]).max()) < 0.9


def test_which_weights_a_layer_has():
    """By the paths of four frameworks: what is called, and what the weights are called."""
    linen = (
        ["stem", "layer1.0.conv", "layer1.0", "layer1", "head"],
        ["stem.kernel", "layer1.0.conv.kernel", "head.bias"],
    )
    assert _top_down(*linen) == ("head", "layer1", "stem")
    lists = ["blocks.0", "blocks.1", "head"], ["blocks.0.kernel", "blocks.1.kernel", "head.kernel"]
    assert _top_down(*lists) == ("head", "blocks.1", "blocks.0")
    keras = ["pixels", "c1", "c2", "block", "head"], ["c1.kernel", "block.c2.kernel", "block.c2.bias", "head.kernel"]
    assert _top_down(*keras) == ("head", "block", "c1")
    sequential = ["c1", "head"], ["sequential.c1.kernel", "sequential.head.kernel", None]
    assert _top_down(*sequential) == ("head", "c1")
    assert weights_below("norm", ["layer1.norm.scale", "layer2.norm.scale"]) == set()  # which of them?
    with pytest.raises(ValueError, match=r"Say so: layers=\[...\], of first, second"):
        _top_down(["features"], ["first", "second"])


def test_functions_are_randomized_by_the_names_of_their_arrays(images):
    weights = {
        "first": jax.random.normal(jax.random.key(0), (2, 5)),
        "last": jax.random.normal(jax.random.key(1), (5, 3)),
    }

    def features(weights, images):
        return jnp.tanh(images @ weights["first"])

    model = jaxcam.tap((features, lambda weights, maps: maps.mean((1, 2)) @ weights["last"]), weights)
    values = metrics.cascading_randomization(jaxcam.saliency, model, images, layers=["last", "first"])
    assert list(values) == ["last", "first"] and float(values["first"].min()) < 0.9
    with pytest.raises(ValueError, match="Unknown layer 'lost'. Did you mean 'last'"):
        metrics.cascading_randomization(jaxcam.saliency, model, images, layers=["lost"])


def test_label_randomization(model, images):
    np.testing.assert_allclose(metrics.label_randomization(jaxcam.saliency, model, model, images), 1, atol=1e-6)
    other = jaxcam.tap(TwoStages(), TwoStages().init(jax.random.key(9), images), "stem")
    values = metrics.label_randomization(jaxcam.saliency, model, other, images)
    predicted = jnp.argmax(model(images), -1)  # the first model's classes, for both
    expected = metrics.spearman(*(jaxcam.saliency(each, images, predicted) for each in (model, other)))
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert float(values.max()) < 0.9


# Input invariance


def input_x_gradient(model, images, targets):
    return images * jaxcam.saliency(model, images, targets)


def test_input_invariance(model, images):
    """Gradients and CAMs are invariant; what multiplies by the input is not."""
    for shift in (1.0, jnp.array([2.0, -1.0])):
        for method in (jaxcam.saliency, jaxcam.grad_cam):
            np.testing.assert_allclose(metrics.input_invariance(method, model, images, shift=shift), 1, atol=1e-3)
    assert float(metrics.input_invariance(input_x_gradient, model, images).max()) < 0.95
    plain = metrics.input_invariance(input_x_gradient, lambda images: model(images), images)
    np.testing.assert_allclose(plain, metrics.input_invariance(input_x_gradient, model, images), atol=1e-5)


def test_a_shift_of_each_image_follows_its_copies(model, images):
    shift = jax.random.normal(jax.random.key(0), (3, 1, 1, 1)) * jnp.ones(images.shape)

    def smooth(*args):
        return jaxcam.smooth_grad(*args, num_samples=3)

    np.testing.assert_allclose(metrics.input_invariance(smooth, model, images, shift=shift), 1, atol=1e-3)


def test_the_shifted_model_is_that_of_the_paper(model, images):
    """Without padding, `b - sum(W shift)` in place of the first bias undoes the shift: the two models explain alike."""
    shift, seen = 1.5, []
    metrics.input_invariance(lambda *args: seen.append(args) or args[1], model, images, shift=shift)
    shifted, moved, targets = seen[0]
    np.testing.assert_allclose(moved, images + shift)
    params = dict(model.variables["params"])
    bias = params["stem"]["bias"] - shift * params["stem"]["kernel"].sum((0, 1, 2))
    params["stem"] = params["stem"] | {"bias": bias}
    compensated = jaxcam.tap(TwoStages(), model.variables | {"params": params}, "stem")
    np.testing.assert_allclose(compensated(moved), model(images), atol=1e-4)
    for method in (input_x_gradient, jaxcam.grad_cam):
        np.testing.assert_allclose(method(shifted, moved, targets), method(compensated, moved, targets), atol=1e-4)


@pytest.mark.usefixtures("as_user")
def test_errors_say_what_is_wrong(model, images):
    with pytest.raises(TypeError, match="needs activations|tap"):
        metrics.cascading_randomization(jaxcam.saliency, lambda images: images, images, 0)
    with pytest.raises(ValueError, match="Unknown layer 'haed'. Did you mean 'head'"):
        metrics.cascading_randomization(jaxcam.saliency, model, images, layers=["haed"])
    with pytest.raises(ValueError, match="out of range"):
        metrics.input_invariance(jaxcam.saliency, model, images, 3)
