"""Methods against the code of those who coined them, and of Xplique where they moved it there.

A row is a name in `golden/authors.npz` or `golden/xplique.npz` (method, code, case) and our call that must give the
same. What is drawn was drawn by jaxcam, and handed to that code.
"""

import json
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import rebuild
from safetensors.numpy import save_file
from test_cam_family import GOLDEN as CAMS
from test_cam_family import tiny

import jaxcam
from jaxcam.attribution import decomposition, perturbation, sensitivity
from jaxcam.models import vit

FOLDER = Path(__file__).parent / "golden"
GOLDEN = dict(np.load(FOLDER / "authors.npz")) | dict(np.load(FOLDER / "xplique.npz"))
METRICS = dict(np.load(FOLDER / "metrics.npz"))
IMAGES, PREDICTED = jnp.asarray(METRICS["images"]), METRICS["logits"].argmax(1)
KEY, TARGET, SIZE = 5, 3, 48
RISE = {"num_samples": 60, "cells": (3, 3), "fraction": 0.4}
GRID = jaxcam.segments.grid((12, 16), (3, 4))


def model(images):
    """The model of `golden/metrics.npz`."""
    x = jax.lax.conv_general_dilated(
        images, METRICS["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return nn.relu(x + METRICS["bias"]).reshape(len(x), -1) @ METRICS["dense"]


# --- Transformers ---


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """The weights of `timm_vit` in `golden/architectures.json`, read as a file of timm is."""
    shapes = json.loads((FOLDER / "architectures.json").read_text())["timm_vit"]
    path = tmp_path_factory.mktemp("vit")
    save_file(rebuild.random_tensors(shapes, 13), path / "model.safetensors")
    return jaxcam.load(path)


@cache
def pictures():
    return jnp.asarray(rebuild.rebuild_images(SIZE, SIZE, (1, 2)))


class Clip(nn.Module):
    """The same encoder, read as LeGrad reads CLIP's: the mean of the tokens beside an embedding of each class."""

    @nn.compact
    def __call__(self, x):
        norm = partial(vit.layer_norm, epsilon=1e-6)
        x = nn.Conv(128, (16, 16), 16, padding="VALID", name="conv_proj")(x)
        x = vit.ClassToken(name="class_token")(x.reshape(len(x), -1, 128))
        x = vit.PositionEmbedding(name="pos_embedding")(x)
        x = vit.Layers(2, partial(vit.EncoderBlock, 2, 192, norm, jnp.float32), name="layers")(x)
        x = nn.Dense(7, use_bias=False, name="head")(norm(name="ln")(x.mean(1)))
        return x / jnp.linalg.norm(x, axis=1, keepdims=True) @ text_of_classes().T


def text_of_classes():
    """As in `make_authors.py`."""
    text = np.random.default_rng(8).standard_normal((7, 7)).astype(np.float32)
    return text / np.linalg.norm(text, axis=1, keepdims=True)


def to_largest(maps):
    return maps / maps.max((1, 2), keepdims=True)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_agrees_with_vit_explain(transformer, fusion):
    maps = jaxcam.attention_rollout(transformer.tap(), pictures(), fusion=fusion, raw=True)
    expected = GOLDEN[f"attention_rollout/vit_explain/{fusion}"]
    np.testing.assert_allclose(to_largest(maps), expected, rtol=1e-4)
    assert np.ptp(expected, (1, 2)).min() > 0.05  # maps, not constants


def test_rollout_agrees_with_attention_flow(transformer):
    maps = jaxcam.attention_rollout(transformer.tap(), pictures(), raw=True)
    np.testing.assert_allclose(maps, GOLDEN["attention_rollout/attention_flow"], rtol=1e-4)


@pytest.mark.parametrize(("case", "targets"), [("predicted", None), ("given", TARGET)])
def test_relevance_agrees_with_chefer(transformer, case, targets):
    maps = jaxcam.attention_relevance(transformer.tap(), pictures(), targets, raw=True)
    expected = GOLDEN[f"attention_relevance/chefer/{case}"]
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert np.ptp(expected, (1, 2)).min() > 0.1 * expected.max()


def test_le_grad_agrees_with_LeGrad(transformer):
    params = transformer.variables["params"]
    encoder = params["encoder"] | {"head": {"kernel": params["heads"]["head"]["kernel"]}}
    params = {each: params[each] for each in ("conv_proj", "class_token")} | encoder
    blocks = [f"layers.encoder_layer_{index}" for index in range(2)]
    model = jaxcam.tap(Clip(), {"params": params}, blocks, reshape=jaxcam.tokens((3, 3)))
    maps = jaxcam.le_grad(model, pictures(), TARGET)
    np.testing.assert_allclose(maps[:, ::5, ::5], GOLDEN["le_grad/LeGrad"], atol=1e-4)


# --- Perturbations ---


def test_the_draws_handed_to_the_code_are_drawn_again():
    """Else the files of golden values must be made again, with `make_authors.py` and `make_xplique.py`."""
    options = RISE["fraction"], RISE["num_samples"], RISE["cells"], IMAGES.shape[1:3]
    grids, offsets = perturbation._rise_draws(jax.random.key(KEY), *options)
    np.testing.assert_array_equal(grids, GOLDEN["rise/draws/grids"])
    np.testing.assert_array_equal(offsets, GOLDEN["rise/draws/offsets"])
    for name, design in (("sobol", sensitivity.total_indices), ("hsic", sensitivity._dependence)):
        drawn = GOLDEN[f"{name}/draws"]
        plan = design(jax.random.key(KEY), jnp.ones((1, 16)), len(drawn))
        found = jax.jit(lambda plan=plan: plan.keep(jnp.arange(plan.num_samples)))()
        np.testing.assert_array_equal(found, drawn.reshape(-1, 16))
    weights = jax.random.uniform(jax.random.key(KEY), (8,), jnp.float32, -1, 1)
    np.testing.assert_array_equal(weights, GOLDEN["random_cam/draws"])


ROWS = {
    "rise/RISE": partial(jaxcam.rise, score=jaxcam.score.probability, **RISE),
    "sobol/Sobol": partial(jaxcam.sobol, segments=GRID, num_samples=16),
    "hsic/xplique": partial(jaxcam.hsic, segments=GRID, num_samples=40),
}


@pytest.mark.parametrize("name", ROWS)
def test_agrees_with_the_code(name):
    maps = ROWS[name](model, IMAGES, PREDICTED, key=KEY)
    maps = maps if maps.shape == GOLDEN[name].shape else maps[:, ::3, ::4]
    np.testing.assert_allclose(maps, GOLDEN[name], atol=1e-5 * GOLDEN[name].max())


# --- pytorch-grad-cam ---


def test_deep_feature_factorization_agrees_with_pytorch_grad_cam():
    """From the same start; and its own start, which is random, leads no closer to the activations."""
    given, classes = (tiny("late"), CAMS["images"]), np.tile(np.arange(5), (3, 1))
    maps, scores = jaxcam.deep_feature_factorization(*given, classes, num_components=3)
    for found, name in ((maps[:, 0], "maps"), (scores.mT, "scores")):
        order, expected = np.argsort(scores[:, 0], -1), GOLDEN[f"deep_feature_factorization/pytorch_grad_cam/{name}"]
        places = np.argsort(GOLDEN["deep_feature_factorization/pytorch_grad_cam/scores"][..., 0], -1)
        found, expected = (each[np.arange(3)[:, None], at] for each, at in ((found, order), (expected, places)))
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    A = given[0].features(given[1]).reshape(3, -1, 8)
    X = A - A.min(1, keepdims=True)
    H, W = jax.vmap(partial(decomposition.factorised, count=3, num_iterations=1000))(X)
    errors = jnp.linalg.norm(X - H @ W, axis=(1, 2))
    assert (errors <= 1.001 * GOLDEN["deep_feature_factorization/error"]).all()


def test_random_cam_agrees_with_pytorch_grad_cam():
    maps = jaxcam.random_cam(tiny("late"), CAMS["images"], key=KEY)
    np.testing.assert_allclose(maps, GOLDEN["random_cam/pytorch_grad_cam"], atol=1e-5)
