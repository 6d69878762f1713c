"""What a GPU and a TPU get: the user's own convolutions, whatever a CPU gets in their place. Lowered, run nowhere."""

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


def lowered(method, model, *platforms) -> list[str]:
    """The program of a method for each platform."""

    def explain(model, images, targets):
        return method.function(model, images, targets, **method.options)

    traced = jax.jit(explain).trace(model, IMAGES, TARGETS)
    return [traced.lower(lowering_platforms=(each,)).as_text() for each in platforms]


def operations(text: str) -> Counter:
    """How often each is in a program; the choice by platform is none."""
    return Counter(re.findall(r"(?:stablehlo|chlo)\.(?!case|return)\w+", text))


def convolutions(text: str) -> int:
    return operations(text)["stablehlo.convolution"]


@pytest.mark.parametrize("method", ROWS)
def test_other_devices_get_the_users_program(method, model, monkeypatch):
    """Operation for operation on a GPU; on a TPU one convolution comes in another form, and is one."""
    on_cuda, on_tpu = lowered(method, model, "cuda", "tpu")
    for module in (compiled, loops):
        monkeypatch.setattr(module, "fast", lambda function, platform=None: function)
    [plain] = lowered(method, model, "cuda")
    assert operations(on_cuda) == operations(plain)
    assert convolutions(on_tpu) == convolutions(plain) > 0


def test_what_a_tpu_and_a_cpu_get(model):
    """Without which the test above would compare nothing."""
    [saliency] = [each for each in helpers.METHODS if each.name == "saliency"]
    on_cpu, on_cuda, on_tpu = lowered(saliency, model, "cpu", "cuda", "tpu")
    zeros = "lhs_dilate = [2, 2]"  # of the gradient of the strided convolution
    assert zeros in on_cuda and zeros not in on_tpu
    assert convolutions(on_cpu) < convolutions(on_tpu) == 2 * 5
