"""The ResNet: torchvision's names, shapes and numerics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_variables, tiny_resnet

from jaxcam.models.resnet import ARCHITECTURES

# Tensors without `num_batches_tracked`, and parameters, as torchvision counts them.
COUNTS = {
    "resnet18": (102, 11_689_512),
    "resnet34": (182, 21_797_672),
    "resnet50": (267, 25_557_032),
    "resnet101": (522, 44_549_160),
    "resnet152": (777, 60_192_808),
    "resnext50_32x4d": (267, 25_028_904),
    "resnext101_32x8d": (522, 88_791_336),
    "resnext101_64x4d": (522, 83_455_272),
    "wide_resnet50_2": (267, 68_883_240),
    "wide_resnet101_2": (522, 126_886_696),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts(name):
    shapes = jax.eval_shape(ARCHITECTURES[name]().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    leaves = jax.tree.leaves(shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert (len(leaves), parameters) == COUNTS[name]


def test_shapes_of_the_stages():
    module = ARCHITECTURES["resnet50"](num_classes=7)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    _, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros(images.shape), capture_intermediates=True)
    )
    stages = [variables["intermediates"][f"layer{index}"]["__call__"][0].shape for index in range(1, 5)]
    assert stages == [(2, 16, 24, 256), (2, 8, 12, 512), (2, 4, 6, 1024), (2, 2, 3, 2048)]


def test_stride_is_on_the_3x3_convolution():
    module = ARCHITECTURES["resnet50"](width=4)
    _, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), capture_intermediates=True)
    )
    block = variables["intermediates"]["layer2"]["0"]
    assert block["conv1"]["__call__"][0].shape[1] == 16
    assert block["conv2"]["__call__"][0].shape[1] == 8


def test_one_block_in_numpy():
    """The whole of a one-block-per-stage network, written out with loops over the kernel."""
    module = tiny_resnet(stem="imagenet")
    variables = random_variables(module, (37, 46))
    images = np.random.default_rng(0).normal(size=(2, 37, 46, 3)).astype(np.float32)
    p, s = variables["params"], variables["batch_stats"]

    def convolve(x, kernel, stride):
        size = kernel.shape[0]
        x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
        height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
        rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
        taps = [(i, j) for i in range(size) for j in range(size)]
        return sum(x[:, i : i + rows : stride, j : j + columns : stride] @ np.asarray(kernel[i, j]) for i, j in taps)

    def norm(x, p, s):
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def pool(x):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        height, width = ((side - 3) // 2 + 1 for side in x.shape[1:3])
        windows = [x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
        return np.max(windows, axis=0)

    def block(x, p, s, stride):
        out = np.maximum(norm(convolve(x, p["conv1"]["kernel"], stride), p["bn1"], s["bn1"]), 0)
        out = norm(convolve(out, p["conv2"]["kernel"], 1), p["bn2"], s["bn2"])
        if "downsample" in p:
            x = norm(convolve(x, p["downsample"]["0"]["kernel"], stride), p["downsample"]["1"], s["downsample"]["1"])
        return np.maximum(out + x, 0)

    x = pool(np.maximum(norm(convolve(images, p["conv1"]["kernel"], 2), p["bn1"], s["bn1"]), 0))
    for index in range(1, 5):
        x = block(x, p[f"layer{index}"]["0"], s[f"layer{index}"]["0"], 1 if index == 1 else 2)
    expected = x.mean((1, 2)) @ p["fc"]["kernel"] + p["fc"]["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)(variables, images), expected, rtol=1e-4, atol=1e-5)


def test_cifar_stem_keeps_the_resolution():
    module = tiny_resnet()
    _, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), capture_intermediates=True)
    )
    shapes = {name: variables["intermediates"][name]["__call__"][0].shape for name in ("conv1", "layer1", "layer4")}
    assert shapes == {"conv1": (1, 32, 32, 4), "layer1": (1, 32, 32, 4), "layer4": (1, 4, 4, 32)}
    assert "downsample" not in variables["params"]["layer1"]["0"]


def test_bfloat16_computes_in_half_and_keeps_float32_parameters():
    module = tiny_resnet(dtype=jnp.bfloat16)
    variables = random_variables(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    apply = jax.jit(partial(module.apply, capture_intermediates=True, mutable=["intermediates"]))
    logits, state = apply(variables, images)
    assert state["intermediates"]["layer3"]["__call__"][0].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    full = jax.jit(tiny_resnet().apply)(variables, images)
    np.testing.assert_allclose(logits, full, atol=0.05 * float(jnp.abs(full).max()))


def test_training_updates_the_statistics_as_torch_does():
    """Momentum 0.1 in torch's words: running = 0.9 running + 0.1 batch."""
    module = tiny_resnet()
    variables = random_variables(module)
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    mutable = ["batch_stats", "intermediates"]
    apply = jax.jit(partial(module.apply, train=True, mutable=mutable, capture_intermediates=True))
    _, state = apply(variables, images)
    conv1 = state["intermediates"]["conv1"]["__call__"][0]
    expected = 0.9 * variables["batch_stats"]["bn1"]["mean"] + 0.1 * conv1.mean((0, 1, 2))
    np.testing.assert_allclose(state["batch_stats"]["bn1"]["mean"], expected, rtol=1e-5)


def test_unknown_stem():
    with pytest.raises(ValueError, match='stem is \'cfar\'; it must be "imagenet" or "cifar"'):
        tiny_resnet(stem="cfar").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
