"""Metrics against the code of those who coined them, against Xplique, and against parts of Captum and SciPy.

A row is a name in `golden/authors_metrics.npz` or `golden/xplique.npz` (metric, code) and our call that must give the
same. The model, the images and the maps are those of `golden/metrics.npz`.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_metrics_quantus import HEATMAPS, IMAGES, MASKS, MODEL, PARAMS, TARGETS, Model, grey

import jaxcam
from jaxcam import metrics
from jaxcam.metrics import mosaic

FOLDER = Path(__file__).parent / "golden"
METRICS, DRAWN = (dict(np.load(FOLDER / f"{name}.npz")) for name in ("metrics", "authors"))
GOLDEN = {
    name: value for file in ("authors_metrics", "xplique") for name, value in np.load(FOLDER / f"{file}.npz").items()
}
KEY = 5
OTHERS = (TARGETS + jnp.array([0, 1, 1])) % 4
SCALED = (HEATMAPS - HEATMAPS.min((1, 2), keepdims=True)) / jnp.ptp(HEATMAPS, (1, 2), keepdims=True)
SETS_OF_CELLS = {"cells": 4, "num_samples": 24, "correlation": metrics.spearman, "key": KEY}


def magnitudes(model, images, targets):
    maps = jnp.abs(jaxcam.saliency(model, images, targets)).sum(-1)
    return maps / maps.max((1, 2), keepdims=True)


def sums_of_magnitudes(model, images, targets):
    return jnp.abs(jaxcam.saliency(model, images, targets)).sum(-1)


def parts(method=magnitudes):
    return MODEL, IMAGES, method(MODEL, IMAGES, TARGETS)


def tap(dense):
    return jaxcam.tap(Model(), {"params": PARAMS | {"dense": {"kernel": dense}}}, "relu")


def pooled(images):
    """The convolution of the model, averaged, and five rows of its dense layer."""
    features = jax.lax.conv_general_dilated(
        images, METRICS["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(features + METRICS["bias"]).mean((1, 2)) @ METRICS["dense"][:5]


def boxes():
    maps = np.kron(GOLDEN["max_box_acc/given/heatmaps"], np.ones((16, 16), np.float32))
    return metrics.max_box_acc(maps, GOLDEN["max_box_acc/given/masks"], threshold=0.13, num_steps=10, curve=True)


def single_pixels():
    images, maps = (GOLDEN[f"monotonicity/given/{name}"] for name in ("images", "heatmaps"))
    return metrics.monotonicity(grey, images[..., None], maps, num_steps=192)


ROWS = {
    "deletion/RISE": lambda: metrics.deletion(MODEL, IMAGES, HEATMAPS, num_steps=24),
    "deletion/xplique": lambda: metrics.deletion(MODEL, IMAGES, HEATMAPS, num_steps=24),
    "insertion/RISE": lambda: metrics.insertion(MODEL, IMAGES, HEATMAPS, num_steps=24, baseline=None),
    "insertion/xplique": lambda: metrics.insertion(MODEL, IMAGES, HEATMAPS, num_steps=24, baseline=None),
    "average_drop/ADCC": lambda: metrics.average_drop(*parts()),
    "average_drop/xplique": lambda: metrics.average_drop(MODEL, IMAGES, SCALED, OTHERS),
    "average_gain/xplique": lambda: metrics.average_gain(MODEL, IMAGES, SCALED, OTHERS),
    "average_increase/xplique": lambda: metrics.average_increase(MODEL, IMAGES, SCALED, OTHERS),
    "adcc/ADCC": lambda: metrics.adcc(magnitudes, MODEL, IMAGES),
    "coherency/ADCC": lambda: metrics.coherency(magnitudes, MODEL, IMAGES),
    "l1_complexity/ADCC": lambda: metrics.l1_complexity(parts()[-1]),
    "mu_fidelity/xplique": lambda: metrics.mu_fidelity(MODEL, IMAGES, HEATMAPS, fraction=0.25, **SETS_OF_CELLS),
    "sensitivity_n/xplique": lambda: metrics.sensitivity_n(
        MODEL, IMAGES, HEATMAPS, fractions=(0.25, 0.5), **SETS_OF_CELLS
    ),
    "occlusion_correlation/captum": lambda: metrics.occlusion_correlation(MODEL, IMAGES, HEATMAPS, window=4),
    "completeness/captum": lambda: metrics.completeness(MODEL, IMAGES, GOLDEN["completeness/given"]),
    "monotonicity/AIX360": single_pixels,
    "max_box_acc/wsolevaluation": lambda: boxes().scores[:, 1:],
    "focus/Focus": lambda: metrics.focus(
        jaxcam.saliency, pooled, jnp.concatenate([IMAGES, IMAGES[:, ::-1]]), jnp.array([0, 1, 2, 0, 1, 1]), key=KEY
    ),
    "label_randomization/captum": lambda: metrics.label_randomization(
        sums_of_magnitudes, MODEL, tap(GOLDEN["label_randomization/given"]), IMAGES
    ),
    "input_invariance/captum": lambda: metrics.input_invariance(jaxcam.input_x_gradient, MODEL, IMAGES, shift=0.7),
    "iou_with_mask/scikit_learn": lambda: metrics.iou_with_mask(HEATMAPS, MASKS, threshold=0.6),
    "iou_top/scikit_learn": lambda: metrics.iou_top(METRICS["a"], METRICS["b"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_agrees_with_the_code(name):
    expected = GOLDEN[name]
    if name.startswith("max_box_acc"):  # at level zero the whole image is found here, and there what is above it
        expected = expected[:, 1:]
    assert np.ptp(expected.astype(float)) > 0
    np.testing.assert_allclose(ROWS[name](), expected, rtol=1e-4, atol=1e-5)


def test_the_draws_handed_to_the_code_are_drawn_again():
    """Else the files of golden values must be made again, with `make_authors.py` and `make_authors_metrics.py`."""
    keys = jax.random.split(jax.random.key(KEY), 24)
    orders = jax.vmap(partial(jax.random.permutation, x=16))(keys)
    np.testing.assert_array_equal(orders, DRAWN["mu_fidelity/draws"])
    _, masks = mosaic._mosaics(jnp.concatenate([IMAGES] * 2), jnp.array([0, 1, 2, 0, 1, 1]), jax.random.key(KEY))
    np.testing.assert_array_equal(masks[:, ::12, ::16].reshape(6, 4), GOLDEN["focus/draws"])
