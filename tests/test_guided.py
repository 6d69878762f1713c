"""Guided backpropagation and its kin: numbers published by Captum, and the error where there is nothing to guide."""

import helpers
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

GUIDED = [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]
DECONVOLUTION = [[2, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]]
GUIDED_GRAD_CAM = [[0, 0, 4, 4], [0, 0, 12, 8], [28, 84, 97.5, 65], [28, 56, 65, 32.5]]


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (jaxcam.guided_backprop, {}, GUIDED),
        (jaxcam.deconvnet, {}, DECONVOLUTION),
        (jaxcam.guided_grad_cam, {"method": "nearest"}, GUIDED_GRAD_CAM),
    ],
    ids=["guided_backprop", "deconvnet", "guided_grad_cam"],
)
def test_published_numbers(method, options, expected):
    module, variables, image = helpers.one_conv()
    found = method(jaxcam.tap(module, variables, "relu1"), image, 0, **options)
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("method", [jaxcam.guided_backprop, jaxcam.deconvnet], ids=lambda method: method.__name__)
def test_without_relu_it_raises(method):
    """Silently returning the plain gradient is the best-known bug of the PyTorch libraries."""
    with pytest.raises(ValueError, match="(?i)relu"):
        method(lambda images: jnp.tanh(images).sum((1, 2)), helpers.images(), 0)
