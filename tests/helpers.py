"""Small models with known answers, and the one table of methods that drives the shared tests."""

import dataclasses
from functools import cache, wraps
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from jaxcam.models.resnet import ARCHITECTURES, BasicBlock, ResNet


class Method(NamedTuple):
    """A row of the registry, with arguments that keep the tests fast, and what cannot hold for it."""

    row: object
    options: dict = {}
    differentiable: bool = True  # smoothly: no ranks, signs, choices or kinks of a ReLU on the way
    pooled: bool = False  # it is for heads of global average pooling and one dense layer

    @property
    def name(self):
        return self.row.name

    @property
    def function(self):
        return xrai_on_grids if self.name == "xrai" else self.row.function

    @property
    def needs_tap(self):
        return self.row.needs != "callable"

    @property
    def is_cam(self):
        """Whether it returns heatmaps in [0, 1] (and coarse maps with `raw`), not attributions."""
        return self.row.gives == "heatmaps"

    @property
    def sees_class(self):
        return self.row.sees_class

    def model(self, **options):
        """The shared test model, with a head that suits the method."""
        return small(pooled=self.pooled, **options)


@wraps(jaxcam.xrai)
def xrai_on_grids(model, images, targets=None, **options):
    """With segments for any shape, under `jit` too: by default it looks at the images, outside."""
    space = images.shape[1:-1]
    grids = tuple(jaxcam.segments.grid(space, max(1, min(space) // parts)) for parts in (2, 4, 8))
    return jaxcam.xrai(model, images, targets, **{"segments": grids, **options})


FEW = {"num_samples": 6, "chunk_size": 8}
OPTIONS = {  # that keep the tests fast; chunks that do not divide what they are chunks of
    "smooth_grad_cam_plus_plus": {"num_samples": 3},
    "score_cam": {"chunk_size": 7},
    "ss_cam": FEW,
    "is_cam": FEW,
    "ablation_cam": {"chunk_size": 7},
    "aug_smooth": {"chunk_size": 12},
    "smooth_grad": FEW,
    "smooth_grad_squared": FEW,
    "var_grad": FEW,
    "integrated_gradients": {"num_steps": 5, "chunk_size": 6},
    "expected_gradients": FEW,
    "blur_integrated_gradients": {"num_steps": 5, "chunk_size": 6},
    "guided_integrated_gradients": {"num_steps": 6},
    "xrai": {"num_steps": 4, "chunk_size": 8},
    "occlusion": {"window": 4, "chunk_size": 8},
    "feature_ablation": {"chunk_size": 8},
    "rise": {"num_samples": 20, "chunk_size": 8},
    "lime": {"num_samples": 120, "chunk_size": 32},
    "kernel_shap": {"num_samples": 120, "chunk_size": 32},
    "shapley_sampling": {"num_samples": 2, "chunk_size": 8},
    "sobol": {"num_samples": 4, "chunk_size": 8},
    "hsic": {"num_samples": 60, "chunk_size": 32},
}
KINKED = {  # on the way to their maps: ranks, signs, choices, or the kinks of a ReLU
    *("finer_cam", "eigen_smooth", "eigen_cam", "eigen_grad_cam", "kpca_cam", "fem", "hsic"),
    *("expected_gradients", "blur_integrated_gradients", "guided_integrated_gradients", "xrai"),
    *("guided_backprop", "deconvnet", "guided_grad_cam", "deep_lift", "lrp"),
}
METHODS = [
    Method(row, OPTIONS.get(name, {}), name not in KINKED, name == "cam")
    for name, row in jaxcam.METHODS.items()
    if row.needs != "tokens" and row.is_map
]


class ConvRelu(nn.Module):
    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(self.features, (3, 3), self.stride, dtype=self.dtype)(x))


class Small(nn.Module):
    """A convolutional classifier that is quick to compile; not square, not symmetric, no normalisation."""

    dtype: jnp.dtype = jnp.float32
    pooled: bool = False  # a head of global average pooling and one dense layer

    @nn.compact
    def __call__(self, x):
        x = ConvRelu(5, 1, self.dtype, name="early")(x)
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = ConvRelu(6, 2, self.dtype, name="late")(x)
        if self.pooled:
            return nn.Dense(4, dtype=self.dtype, name="head")(x.mean((1, 2)))
        x = nn.Dense(8, dtype=self.dtype, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(4, dtype=self.dtype, name="head")(nn.tanh(x))


class GapHead(nn.Module):
    """Global average pooling and one dense layer: Grad-CAM is CAM here."""

    @nn.compact
    def __call__(self, x):
        x = Relu(name="features_relu")(nn.Conv(6, (3, 3), name="features")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


class OneConv(nn.Module):
    """Captum's `ConvNet_One_Conv` test model, so that its published numbers apply."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), padding="VALID", name="conv1")(x)
        x = Relu(name="relu1")(x)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # channels first, as there
        return nn.relu(nn.Dense(2, use_bias=False, name="fc1")(x))


class Relu(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(x)


def one_conv():
    """The model, its variables and its input, `arange(16)` as a 4x4 image."""
    kernel = jnp.stack([jnp.ones((3, 3, 1)), jnp.ones((3, 3, 1))], -1)
    # `fc1` reads 2x2x2 features; the published rows are [1 x5, -1 x3] over Captum's eight.
    row = jnp.array([1.0] * 5 + [-1.0] * 3)
    params = {
        "conv1": {"kernel": kernel, "bias": jnp.array([-50.0, -75.0])},
        "fc1": {"kernel": jnp.stack([row, -row], -1)},
    }
    return OneConv(), {"params": params}, jnp.arange(16.0).reshape(1, 4, 4, 1)


def images(n=3, h=12, w=16, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, h, w, 3))


@cache
def small(layer="late", dtype=jnp.float32, shape=(12, 16), seed=0, pooled=False):
    """A tap on `Small`, seeded."""
    module = Small(dtype, pooled)
    variables = jax.jit(Small(pooled=pooled).init)(jax.random.key(seed), jnp.zeros((1, *shape, 3)))
    return jaxcam.tap(module, variables, layer)


def tiny_resnet(**options):
    """One block per stage, width 4, CIFAR stem: compiles in a second."""
    options = {"num_classes": 10, "width": 4, "stem": "cifar"} | options
    return ResNet((1, 1, 1, 1), BasicBlock, **options)


def tiny_classifier():
    """The bundled classifier with such a network in its place, for code that takes any: it is quick to trace."""
    module = tiny_resnet()
    return dataclasses.replace(
        jaxcam.load("resnet18_cifar10"), module=module, variables=random_variables(module), layer="layer4"
    )


def random_variables(module, shape=(32, 32), seed=0):
    """Initial parameters, with BatchNorm statistics away from zero and one."""
    variables = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, *shape, 3)))
    rng = np.random.default_rng(seed)
    low = {"mean": -0.5, "var": 0.5}
    stats = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(low[path[-1].key] + rng.uniform(0, 1, x.shape), x.dtype), variables["batch_stats"]
    )
    return {"params": variables["params"], "batch_stats": stats}


__all__ = ["ARCHITECTURES", "METHODS", "GapHead", "Small", "images", "one_conv", "random_variables", "small"]
