"""Bad input: each has its own sentence, for every method."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
every_method = pytest.mark.parametrize("method", ROWS)
GOOD = np.asarray(helpers.images())


def broken(value):
    images = GOOD.copy()
    images[1, 2, 3, 0] = value
    return images


BAD = [
    (GOOD[0], None, ValueError, "For one image, pass image\\[None\\]"),
    (GOOD[0, 0], None, ValueError, "For one signal, pass signal\\[None\\]"),
    (GOOD[None, None], None, ValueError, "it must be \\[n, length, c\\], \\[n, h, w, c\\], \\[n, d, h, w, c\\]"),
    (GOOD[:0], None, ValueError, "holds no pixels"),
    (GOOD.astype(np.uint8), None, ValueError, "dtype uint8; it must be floating-point"),
    (GOOD.tolist(), None, TypeError, "images is a list"),
    (broken(np.nan), None, ValueError, "NaN or infinite pixels \\(in image 1\\)"),
    (broken(np.inf), None, ValueError, "NaN or infinite pixels"),
    (broken(3e38), None, ValueError, "pixels beyond 1e\\+15 \\(in image 1\\), and their products leave float32"),
    (GOOD[..., :1], None, ValueError, "The images have 1 channel, and the model was made for 3"),
    (GOOD, 4, ValueError, "Target 4 is out of range: the model has 4 classes, 0 to 3"),
    (GOOD, -1, ValueError, "Target -1 is out of range"),
    (GOOD, np.array([0, 9, 1]), ValueError, "Target 9 is out of range"),
    (GOOD, np.array([[0, 1], [2, 3], [4, 0]]), ValueError, "Target 4 is out of range"),
    (GOOD, np.array([0, 1]), ValueError, "targets has shape \\(2,\\); for 3 images it must be one class, an array"),
    (GOOD, np.array([[0, 1, 2]]), ValueError, "targets has shape \\(1, 3\\)"),
    (GOOD, 1.0, TypeError, "they must be integers"),
    (GOOD, np.array([0.0, 1.0, 2.0]), TypeError, "they must be integers"),
    (GOOD, True, TypeError, "they must be integers"),
    (GOOD, "cat", TypeError, "labels.index\\('cat'\\)"),
]


@pytest.mark.parametrize("method", [jaxcam.grad_cam, jaxcam.saliency], ids=lambda method: method.__name__)
@pytest.mark.parametrize(("images", "targets", "error", "message"), BAD, ids=[row[3][:25] for row in BAD])
def test_each_mistake_has_its_sentence(as_user, method, images, targets, error, message):
    with pytest.raises(error, match=message):
        method(helpers.small(), images, targets)


@every_method
def test_every_method_makes_the_shared_checks(as_user, method):
    """Of its images, its targets and its model, before it computes anything."""
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        method.function(method.model(), broken(np.nan), None, **method.options)
    with pytest.raises(ValueError, match="Target 9 is out of range"):
        method.function(method.model(), GOOD, 9, **method.options)
    with pytest.raises(TypeError, match="model is a int"):
        method.function(3, GOOD, None, **method.options)
    if method.needs_tap and method.name != "full_grad":  # that looks at every layer
        with pytest.raises(ValueError, match="Unknown layer 'latte'. Did you mean 'late'"):
            method.function(method.model(layer="latte"), GOOD, **method.options)


@every_method
def test_target_out_of_range_under_jit_is_nan_never_a_picture(method):
    """The range cannot be checked there; JAX alone would clamp the index and explain another class."""
    model, images = method.model(), helpers.images()
    result = jax.jit(lambda targets: method.function(model, images, targets, **method.options))(jnp.array([0, 4, -1]))
    assert bool(jnp.isfinite(result[0]).all())
    if method.sees_class:
        assert bool(jnp.isnan(result[1:]).all())


OUTPUTS = [
    (lambda images: {"logits": images.mean((1, 2))}, "a dict with the keys 'logits'"),
    (lambda images: (images.mean((1, 2)), images), "a tuple of 2"),
    (lambda images: images, r"an array float32 \(3, 12, 16, 3\)"),
]


@pytest.mark.parametrize(("model", "came"), OUTPUTS, ids=["dict", "tuple", "maps"])
def test_an_output_without_logits_says_what_came_and_how_to_pick(as_user, model, came):
    with pytest.raises(ValueError, match=f"The model returns {came}, which has no predicted class. Pick what is"):
        jaxcam.saliency(model, GOOD)
    with pytest.raises(ValueError, match=f"{came} where this score expects logits \\[n, k\\]. Pick them, such as"):
        jaxcam.saliency(model, GOOD, 1)


def test_any_output_with_a_score_that_reads_it():
    model = OUTPUTS[0][0]
    attributions = jaxcam.saliency(model, GOOD, 1, score=lambda output, targets: output["logits"][:, 1])
    np.testing.assert_allclose(attributions, np.broadcast_to([0, 1 / 192, 0], GOOD.shape), rtol=1e-5)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_single_number_is_explained_itself(shape):
    def model(images):
        return images.mean((1, 2, 3)).reshape(shape)

    expected = np.full(GOOD.shape, 1 / 576)
    np.testing.assert_allclose(jaxcam.saliency(model, GOOD), expected, rtol=1e-5)
    np.testing.assert_allclose(jaxcam.saliency(model, GOOD, 1), expected, rtol=1e-5)
    np.testing.assert_allclose(jaxcam.saliency(model, GOOD, 0), -expected, rtol=1e-5)
