"""Every method in the modes that JAX can be in, and with the rewriting switched off."""

from functools import cache

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
every_method = pytest.mark.parametrize("method", ROWS)
IMAGES, TARGETS = helpers.images(2, 8, 12), jnp.array([2, 0], jnp.int32)
OPTIONS = {"occlusion": {"window": 4, "chunk_size": 4}}


class Plain(nn.Module):
    """What the modes allow: Flax's own average pooling promotes types."""

    pooled: bool

    @nn.compact
    def __call__(self, x):
        x = helpers.ConvRelu(6, 2, jnp.float32, name="late")(nn.relu(nn.Conv(5, (3, 3), name="early")(x)))
        if self.pooled:
            return nn.Dense(4, name="head")(x.mean((1, 2)))
        return nn.Dense(4, name="head")(nn.tanh(nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1))))


@cache
def tapped(pooled):
    module = Plain(pooled)
    return jaxcam.tap(module, module.init(jax.random.key(0), jnp.zeros((1, 8, 12, 3))), "late")


def call(method, model, images, targets=TARGETS):
    return method.function(model, images, targets, **{**method.options, **OPTIONS.get(method.name, {})})


@every_method
def test_modes(method):
    """No implicit transfers; and, of the same program traced again, strict promotion and doubles switched on."""
    model = tapped(method.pooled)
    expected = np.asarray(call(method, model, IMAGES))
    with jax.transfer_guard("disallow"):
        found = call(method, model, IMAGES)
    np.testing.assert_array_equal(found, expected)
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda model, images: call(method, model, images), model, IMAGES)
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda model, images: call(method, model, images), model, IMAGES).dtype == jnp.float32


@pytest.mark.parametrize("name", ["grad_cam", "score_cam", "smooth_grad", "xrai", "lrp", "rise", "kernel_shap"])
def test_doubles_change_no_number(name):
    [method] = [each for each in helpers.METHODS if each.name == name]
    model = tapped(method.pooled)
    expected = np.asarray(call(method, model, IMAGES))
    with jax.enable_x64(True):
        found = call(method, model, IMAGES)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


REWRITTEN = [row for row in ROWS if row.values[0].name in (
    *("grad_cam", "score_cam", "ablation_cam", "full_grad", "saliency", "smooth_grad", "integrated_gradients"),
    *("guided_integrated_gradients", "guided_backprop", "lrp", "occlusion", "feature_ablation", "rise"),
)]  # fmt: skip


@pytest.mark.parametrize("method", REWRITTEN)
def test_without_rewriting(method):
    """The switch that leaves a user's program as it is changes no result."""
    model = tapped(method.pooled)
    expected = np.asarray(call(method, model, IMAGES))
    jaxcam.config.rewrite = False
    try:
        found = call(method, model, IMAGES)
    finally:
        jaxcam.config.rewrite = True
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
