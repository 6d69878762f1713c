"""CAM methods: identities, and numbers published by others."""

from dataclasses import replace

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

# Captum 0.9's tests for Grad-CAM on this model, and pytorch-grad-cam 1.5.7's formulas on it, before normalising.
PUBLISHED = [
    (jaxcam.grad_cam, "conv1", [11.25, 13.5, 20.25, 22.5]),
    (jaxcam.grad_cam, "relu1", [0, 4, 28, 32.5]),
    (jaxcam.grad_cam_plus_plus, "relu1", [0, 0.20779, 1.87126, 2.7301]),
    (jaxcam.x_grad_cam, "relu1", [0, 4, 25, 25]),
    (jaxcam.hires_cam, "relu1", [0, 4, 25, 25]),
    (jaxcam.layer_cam, "relu1", [0, 4, 31, 40]),
]


@pytest.mark.parametrize(("method", "layer", "expected"), PUBLISHED, ids=lambda each: getattr(each, "__name__", None))
def test_published_numbers(method, layer, expected):
    module, variables, image = helpers.one_conv()
    raw = method(jaxcam.tap(module, variables, layer), image, 0, raw=True)
    np.testing.assert_allclose(raw.ravel(), expected, atol=1e-5)


@pytest.fixture(scope="module")
def gap():
    """A model whose head is global average pooling and one dense layer, with CAM worked out by hand."""
    module, images = helpers.GapHead(), helpers.images()
    variables = module.init(jax.random.key(0), images)
    model = jaxcam.tap(module, variables, "features_relu")
    features = model.features(images)
    cam = jnp.einsum("nhwk,k->nhw", features, variables["params"]["head"]["kernel"][:, 2])
    return model, images, cam


@pytest.mark.parametrize("method", [jaxcam.grad_cam, jaxcam.hires_cam])
def test_on_a_gap_head_grad_cam_is_cam(gap, method):
    model, images, cam = gap
    np.testing.assert_allclose(method(model, images, 2, raw=True) * (12 * 16), cam, atol=1e-5)


def test_x_grad_cam_is_cam_on_a_gap_head(gap):
    """The gradient is constant there, so its activation-weighted mean is the gradient (but for the 1e-7)."""
    model, images, cam = gap
    np.testing.assert_allclose(jaxcam.x_grad_cam(model, images, 2, raw=True) * (12 * 16), cam, atol=1e-5)


def test_hires_cam_sums_to_the_logit_on_a_gap_head(gap):
    model, images, _ = gap
    logits = model(images)[:, 2] - model.variables["params"]["head"]["bias"][2]
    np.testing.assert_allclose(jaxcam.hires_cam(model, images, 2, raw=True).sum((1, 2)), logits, rtol=1e-4)


def test_scaling_the_score_changes_no_heatmap(gap):
    """Grad-CAM of a score a million times smaller is the same picture, as `scale(map)` should be scale-free."""
    model, images, _ = gap
    tiny = jaxcam.grad_cam(model, images, 2, score=lambda logits, t: 1e-6 * jaxcam.score.logit(logits, t))
    np.testing.assert_allclose(tiny, jaxcam.grad_cam(model, images, 2), atol=1e-5)


def test_score_cam_oracle():
    """Score-CAM written out in NumPy, one mask at a time."""
    model, images = helpers.small("late"), helpers.images(2)
    A = np.asarray(model.features(images))
    expected = []
    for image, activation in zip(images, A, strict=True):
        scores = []
        for channel in range(activation.shape[-1]):
            mask = _align_corners(activation[..., channel], (12, 16))
            span = mask.max() - mask.min()
            mask = (mask - mask.min()) / span if span > 0 else 0 * mask
            scores.append(float(model((image * mask[..., None])[None])[0, 1]))
        weights = np.exp(scores) / np.exp(scores).sum()
        expected.append((activation * weights).sum(-1))
    result = jaxcam.score_cam(model, images, 1, raw=True, chunk_size=5)
    np.testing.assert_allclose(result, np.stack(expected), atol=1e-5)


def _align_corners(values, shape):
    rows, columns = (np.linspace(0, old - 1, new) for old, new in zip(values.shape, shape, strict=True))
    along = np.stack([np.interp(columns, np.arange(values.shape[1]), row) for row in values])
    return np.stack([np.interp(rows, np.arange(values.shape[0]), column) for column in along.T], axis=1)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_chunk_size_changes_nothing(chunk_size):
    model, images = helpers.small("late"), helpers.images(2)
    whole = jaxcam.score_cam(model, images, chunk_size=12)
    np.testing.assert_allclose(jaxcam.score_cam(model, images, chunk_size=chunk_size), whole, atol=1e-5)


def test_score_cam_memory_does_not_grow_with_the_channels():
    """Temporaries of one chunk, not of all masks: 24 times the masks take less than twice the memory."""
    import flax.linen as nn

    class Wide(nn.Module):
        channels: int

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(self.channels, (3, 3), 8, name="wide")(x))
            return nn.Dense(4)(x.mean((1, 2)))

    def temporaries(channels):
        module, images = Wide(channels), helpers.images(1, 64, 64)
        model = jaxcam.tap(module, module.init(jax.random.key(0), images), "wide")
        function = jax.jit(lambda model, images: jaxcam.score_cam(model, images, chunk_size=8))
        return function.lower(model, images).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(192) < 2 * temporaries(8)


def test_logits_that_do_not_depend_on_the_layer_give_zeros():
    model = helpers.small("late")
    head = jax.tree.map(jnp.zeros_like, model.variables["params"]["head"])
    variables = {"params": {**model.variables["params"], "head": head}}
    blind = replace(model, variables=variables)
    with pytest.warns(UserWarning, match="All gradients at 'late' are zero, and so are the heatmaps"):
        np.testing.assert_array_equal(jaxcam.grad_cam(blind, helpers.images(), 1), 0)


def test_methods_need_a_tap(as_user):
    with pytest.raises(TypeError, match="needs activations, and the model is a function"):
        jaxcam.grad_cam(lambda images: images.mean((1, 2)), helpers.images())
    with pytest.raises(TypeError, match="score_cam needs activations"):
        jaxcam.score_cam(lambda images: images.mean((1, 2)), helpers.images())


def test_layer_must_be_spatial():
    with pytest.raises(ValueError, match="'hidden' returns \\(3, 8\\), which is not spatial"):
        jaxcam.grad_cam(helpers.small("hidden"), helpers.images())
