"""Scores: what each explains, and that they go through `jit` without compiling again."""

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam import score

LOGITS = jnp.array([[1.0, 2.0, 4.0], [0.0, -1.0, 3.0]])
TARGETS = jnp.array([2, 1])


def test_values():
    np.testing.assert_allclose(score.logit(LOGITS, TARGETS), [4, -1])
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    np.testing.assert_allclose(score.probability(LOGITS, TARGETS), [softmax[0, 2], softmax[1, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        score.log_probability(LOGITS, TARGETS), np.log([softmax[0, 2], softmax[1, 1]]), rtol=1e-6
    )
    np.testing.assert_allclose(score.counterfactual(LOGITS, TARGETS), [-4, 1])
    np.testing.assert_allclose(score.contrast(0)(LOGITS, TARGETS), [3, -1])
    np.testing.assert_allclose(score.cosine_similarity([1.0, 0.0, 0.0])(LOGITS, None), [1 / 21**0.5, 0], atol=1e-6)


def test_pixels():
    output = jax.random.normal(jax.random.key(0), (2, 3, 4, 3))
    mask = jnp.zeros((3, 4)).at[1, 2].set(1)
    np.testing.assert_allclose(score.pixels()(output, TARGETS)[1], output[1, ..., 1].sum(), rtol=1e-5)
    np.testing.assert_allclose(score.pixels(mask)(output, TARGETS), [output[0, 1, 2, 2], output[1, 1, 2, 1]], rtol=1e-6)


@pytest.mark.parametrize("name", ["logit", "probability", "log_probability", "counterfactual"])
def test_target_out_of_range_is_nan(name):
    assert bool(jnp.isnan(getattr(score, name)(LOGITS, jnp.array([3, -1]))).all())


def test_an_array_in_a_score_does_not_compile_again():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(1)
            x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
            return nn.Dense(3)(x.mean((1, 2)))

    traces, images = [], helpers.images()
    model = jaxcam.tap(Counting(), Counting().init(jax.random.key(0), images), "conv")
    first = jaxcam.grad_cam(model, images, score=score.cosine_similarity([1.0, 0.0, 0.5]))
    seen = len(traces)
    second = jaxcam.grad_cam(model, images, score=score.cosine_similarity([0.0, 1.0, -0.5]))
    assert len(traces) == seen
    assert not np.allclose(first, second, atol=1e-2)


def test_segmentation_model():
    """A heatmap for one class at one pixel is that pixel's receptive field."""

    class Segmenter(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), name="features")(x))
            return nn.Conv(3, (1, 1))(x)

    images = helpers.images(2)
    model = jaxcam.tap(Segmenter(), Segmenter().init(jax.random.key(0), images), "features")
    mask = jnp.zeros((12, 16)).at[5, 6].set(1)
    attributions = jaxcam.saliency(model, images, 1, score=score.pixels(mask))
    inside = np.zeros((12, 16), bool)
    inside[4:7, 5:8] = True
    assert float(jnp.abs(attributions[:, inside]).max()) > 0
    np.testing.assert_array_equal(attributions[:, ~inside], 0)
    assert jaxcam.grad_cam(model, images, 2, score=score.pixels()).shape == (2, 12, 16)


def test_errors(as_user):
    with pytest.raises(ValueError, match="expects logits \\[n, k\\]"):
        score.logit(jnp.zeros((2, 3, 4, 5)), TARGETS)
    with pytest.raises(ValueError, match="other has shape \\(2,\\); it must have 0 axes and is shared by all images"):
        score.contrast(jnp.array([1, 2]))
    with pytest.raises(ValueError, match="embedding has shape \\(2, 3\\)"):
        score.cosine_similarity(LOGITS)
    with pytest.raises(ValueError, match="mask has shape \\(2, 3, 4\\)"):
        score.pixels(jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="score.pixels expects"):
        score.pixels()(LOGITS, TARGETS)
