"""Bad input: each has its own sentence, for every method."""

from types import SimpleNamespace

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam._inputs import suitable_chunk

every_method = pytest.mark.parametrize("method", helpers.METHODS, ids=lambda method: method.name)
GOOD = np.asarray(helpers.images())


def broken(value):
    images = GOOD.copy()
    images[1, 2, 3, 0] = value
    return images


BAD = [
    (GOOD[0], None, ValueError, "For one image, pass image\\[None\\]"),
    (GOOD[0, 0], None, ValueError, "it must be \\[n, h, w, c\\]"),
    (GOOD[:0], None, ValueError, "holds no pixels"),
    (GOOD.astype(np.uint8), None, ValueError, "dtype uint8; it must be floating-point"),
    (GOOD.tolist(), None, TypeError, "images is a list"),
    (broken(np.nan), None, ValueError, "NaN or infinite pixels \\(in image 1\\)"),
    (broken(np.inf), None, ValueError, "NaN or infinite pixels"),
    (GOOD, 4, ValueError, "Target 4 is out of range: the model has 4 classes, 0 to 3"),
    (GOOD, -1, ValueError, "Target -1 is out of range"),
    (GOOD, np.array([0, 9, 1]), ValueError, "Target 9 is out of range"),
    (GOOD, np.array([0, 1]), ValueError, "targets has shape \\(2,\\); for 3 images"),
    (GOOD, np.array([[0, 1, 2]]), ValueError, "targets has shape \\(1, 3\\)"),
    (GOOD, 1.0, TypeError, "they must be integers"),
    (GOOD, np.array([0.0, 1.0, 2.0]), TypeError, "they must be integers"),
    (GOOD, True, TypeError, "they must be integers"),
    (GOOD, "cat", TypeError, "labels.index\\('cat'\\)"),
]


@every_method
@pytest.mark.parametrize(("images", "targets", "error", "message"), BAD, ids=[row[3][:25] for row in BAD])
def test_each_mistake_has_its_sentence(as_user, method, images, targets, error, message):
    with pytest.raises(error, match=message):
        method.function(method.model(), images, targets, **method.options)


@every_method
def test_target_out_of_range_under_jit_is_nan_never_a_picture(method):
    """The range cannot be checked there; JAX alone would clamp the index and explain another class."""
    model, images = method.model(), helpers.images()
    result = jax.jit(lambda targets: method.function(model, images, targets, **method.options))(jnp.array([0, 4, -1]))
    assert bool(jnp.isfinite(result[0]).all())
    if method.sees_class:
        assert bool(jnp.isnan(result[1:]).all())


@every_method
def test_unknown_layer_names_the_closest(method):
    if method.needs_tap and method.function is not jaxcam.full_grad:  # that looks at every layer
        with pytest.raises(ValueError, match="Unknown layer 'latte'. Did you mean 'late'"):
            method.function(method.model(layer="latte"), helpers.images(), **method.options)


def test_model_without_logits(as_user):
    def segmentation(images):
        return images

    with pytest.raises(ValueError, match="has no predicted class"):
        jaxcam.saliency(segmentation, helpers.images())
    with pytest.raises(ValueError, match="expects logits \\[n, k\\]"):
        jaxcam.saliency(segmentation, helpers.images(), 1)


def test_chunks_suit_the_images():
    """On a CPU; other devices say how much memory they have."""
    shapes = {32: 32, 224: 8, 448: 2, 2000: 1}
    if jax.default_backend() == "cpu":
        assert {side: suitable_chunk(jnp.ones((1, side, side, 3))) for side in shapes} == shapes


@pytest.mark.parametrize(("memory", "expected"), [(80e9, 110), (8e9, 11), (1e6, 1), (1e13, 256)])
def test_chunks_suit_the_memory(monkeypatch, memory, expected):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": int(memory)})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert suitable_chunk(np.zeros((4, 224, 224, 3))) == expected
    device.memory_stats = lambda: None
    assert suitable_chunk(np.zeros((4, 224, 224, 3))) == 8
