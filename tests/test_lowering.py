"""What a GPU and a TPU get: the user's own program, whatever a CPU gets in its place. Lowered here, run nowhere."""

import re
from collections import Counter

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import pytest

import jaxcam
from jaxcam._engine import compiled, loops

ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
IMAGES, TARGETS = helpers.images(2, 12, 16), jnp.array([2, 0], jnp.int32)


class Forms(nn.Module):
    """One layer for each of the forms in `_engine/convolutions`, and a head that every method can take."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (7, 7), 2, name="strided")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x))
        x = nn.relu(nn.Conv(64, (1, 1), name="product")(x))
        x = nn.relu(nn.Conv(64, (3, 3), 4, name="few_pixels")(x))
        x = nn.relu(nn.Conv(16, (3, 3), name="late")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def model():
    return jaxcam.tap(Forms(), jax.jit(Forms().init)(jax.random.key(0), IMAGES), "late")


def lowered(method, model, *platforms) -> list[Counter]:
    """How often each operation is in the program of a method, for each platform; the choice by platform is none."""

    def explain(model, images, targets):
        return method.function(model, images, targets, **method.options)

    traced = jax.jit(explain).trace(model, IMAGES, TARGETS)
    texts = (traced.lower(lowering_platforms=(each,)).as_text() for each in platforms)
    return [Counter(re.findall(r"(?:stablehlo|chlo)\.(?!case|return)\w+", text)) for text in texts]


@pytest.mark.parametrize("method", ROWS)
def test_other_devices_get_the_program_as_it_is(method, model, monkeypatch):
    """Operation for operation."""
    on_cuda, on_tpu = lowered(method, model, "cuda", "tpu")
    for module in (compiled, loops):
        monkeypatch.setattr(module, "fast", lambda function, platform=None: function)
    [expected] = lowered(method, model, "cuda")
    assert on_cuda == expected
    assert on_tpu["stablehlo.convolution"] == expected["stablehlo.convolution"] > 0  # linear algebra is its own there


def test_a_cpu_gets_other_forms(model):
    """Without which the test above would compare nothing."""
    [saliency] = [each for each in helpers.METHODS if each.name == "saliency"]
    on_cpu, on_tpu = lowered(saliency, model, "cpu", "tpu")
    assert on_cpu["stablehlo.convolution"] < on_tpu["stablehlo.convolution"] == 2 * 5
