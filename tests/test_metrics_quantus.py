"""Metrics against Quantus, on the model, the images and the random numbers that it was given, and against the papers.

A row is a name in `golden/quantus.npz` and our call that must give the same; where Quantus departs from its paper there
is no row, but a case with a known answer.
"""

import inspect
from functools import partial
from pathlib import Path

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.rebuild import noisy_copies, pictures
from scipy import ndimage

import jaxcam
from jaxcam import metrics
from jaxcam.dataset.program import work_of
from jaxcam.metrics import information

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")
QUANTUS = np.load(Path(__file__).parent / "golden" / "quantus.npz")
IMAGES, HEATMAPS, MASKS, ATTRIBUTIONS = (
    jnp.asarray(GOLDEN[name]) for name in ("images", "heatmaps", "masks", "attributions")
)
COPIES = noisy_copies(GOLDEN["images"], GOLDEN["heatmaps"])
TARGETS = jnp.argmax(GOLDEN["logits"], -1)


class Relu(nn.Module):
    def __call__(self, x):
        return nn.relu(x)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Relu(name="relu")(nn.Conv(5, (3, 3), padding="VALID", name="conv")(x))
        return nn.Dense(4, use_bias=False, name="dense")(x.reshape(len(x), -1))


PARAMS = {"conv": {"kernel": GOLDEN["conv"], "bias": GOLDEN["bias"]}, "dense": {"kernel": GOLDEN["dense"]}}
MODEL = jaxcam.tap(Model(), {"params": jax.tree.map(jnp.asarray, PARAMS)}, "relu")


def explain(images):
    return jaxcam.saliency(MODEL, images, TARGETS)


def given(name, split=jax.random.split):
    """A perturbation that hands out the golden arrays in place of drawn ones: the key tells which sample it is."""
    arrays = jnp.asarray(GOLDEN[name])
    keys = jax.random.key_data(split(jax.random.key(0), len(arrays)))
    options = {"perturbation": lambda key, image: arrays[jnp.argmax((keys == jax.random.key_data(key)).all(-1))]}
    return options | {"num_samples": len(arrays)}


def grey(images):
    """The golden model for one channel, which it repeats."""
    return MODEL(jnp.repeat(images, 3, -1))


def still():
    """Images in which a third of the pixels is zero already, so that nothing changes where they are taken away."""
    return IMAGES[..., :1].at[:, ::3].set(0)


def quantus_weights(_key, array):
    """The weights that Quantus drew; each is of another shape."""
    drawn = {QUANTUS[name].shape: QUANTUS[name] for name in ("weights/conv", "weights/bias", "weights/dense")}
    return jnp.asarray(drawn[array.shape])


def randomized(metric, layer, **options):
    options |= {"randomize": quantus_weights, "similarity": metrics.pearson}
    return metric(jaxcam.saliency, MODEL, IMAGES, TARGETS, **options)[layer]


def magnitudes(model, images, targets):
    maps = jnp.abs(jaxcam.saliency(model, images, targets)).sum(-1)
    return maps / maps.max((1, 2), keepdims=True)


def curve_of_bytes(metric):
    images, maps, known, weights = pictures()

    def model(images):
        logits = jnp.sum(images / 255 * weights, (1, 2, 3)) - 6
        return jnp.stack([logits, jnp.zeros_like(logits)], -1)

    with pytest.MonkeyPatch.context() as patch:
        known[[0, 0, -1, -1], [0, -1, 0, -1]] = True
        patch.setattr(information, "_hint", lambda key, space: known)
        return metric(model, images.astype(np.float32), maps, 0, fractions=(0.02, 0.05, 0.1, 0.2, 0.5), curve=True)


def in_tiles(tiles):
    return np.kron(np.reshape(tiles, (-1, 2, 2)), np.ones((6, 8))) > 0


def drops(curve):
    return curve.scores[:, :1] - curve.scores[:, 1:]


def in_segments(curve):
    """The area as Quantus counts it: in segments, without the first interval."""
    return len(curve.fractions) - 1 - np.trapezoid(curve.scores[:, 1:] / curve.scores[:, :1])


CELLS = np.arange(192).reshape(12, 16) // 2 % 8 + 8 * (np.arange(12)[:, None] // 3)
GREY_TARGETS = jnp.argmax(grey(IMAGES[..., :1]), -1)
ONE = (grey, IMAGES[..., :1], HEATMAPS)

ROWS = {
    "MaxSensitivity": lambda: metrics.max_sensitivity(explain, IMAGES, **given("changes")),
    "AvgSensitivity": lambda: metrics.average_sensitivity(explain, IMAGES, **given("changes")),
    "LocalLipschitzEstimate": lambda: metrics.local_lipschitz(explain, IMAGES, **given("changes")),
    "Continuity": lambda: metrics.continuity(
        explain, IMAGES, num_steps=7, baseline=IMAGES.min((1, 2, 3), keepdims=True)
    ),
    "RelativeInputStability": lambda: metrics.relative_input_stability(
        jaxcam.saliency, MODEL, IMAGES, **given("changes")
    ),
    "RelativeOutputStability": lambda: metrics.relative_output_stability(
        jaxcam.saliency, MODEL, IMAGES, **given("changes")
    ),
    "RelativeRepresentationStability": lambda: metrics.relative_representation_stability(
        jaxcam.saliency, MODEL, IMAGES, **given("changes")
    ),
    "Selectivity": lambda: metrics.selectivity(*ONE, window=4, curve=True).scores[:, 1:],
    "RegionPerturbation": lambda: drops(metrics.region_perturbation(*ONE, window=4, num_steps=7, curve=True)),
    "IROF": lambda: in_segments(metrics.irof(*ONE, segments=CELLS, baseline=None, curve=True)),
    "MonotonicityCorrelation": lambda: metrics.monotonicity_correlation(
        *ONE, baseline=None, num_steps=8, num_samples=1
    ),
    "AUC/heatmaps": lambda: metrics.mask_auc(HEATMAPS, MASKS),
    "AUC/sparse": lambda: metrics.mask_auc(GOLDEN["sparse"], MASKS),
    "AttributionLocalisation": lambda: metrics.relevance_mass_accuracy(HEATMAPS, MASKS),
    "TopKIntersection": lambda: metrics.top_k_intersection(HEATMAPS, MASKS),
    "TopKIntersection/influence": lambda: metrics.top_k_intersection(HEATMAPS, MASKS, normalize=True),
    "Focus": lambda: metrics.energy_pointing_game(
        ATTRIBUTIONS[..., 0], in_tiles([(0, 1, 1, 0), (1, 1, 0, 0), (1, 0, 0, 1)])
    ),
    "EfficientMPRT": lambda: metrics.efficient_mprt(jaxcam.saliency, MODEL, IMAGES, randomize=quantus_weights),
    **{
        f"{name}/{layer}": partial(randomized, metric, layer, **options)
        for name, metric, options in (
            ("MPRT", metrics.cascading_randomization, {"layers": ["dense", "conv"]}),
            ("MPRT/independent", metrics.independent_randomization, {"layers": ["dense", "conv"]}),
            ("SmoothMPRT", metrics.smooth_mprt, {"layers": ["dense", "conv"], "noise": 0, "num_samples": 2}),
        )
        for layer in ("dense", "conv")
    },
    "gradcam/Complexity": lambda: metrics.l1_complexity(magnitudes(MODEL, IMAGES, TARGETS)),
    "gradcam/Coherency": lambda: metrics.coherency(magnitudes, MODEL, IMAGES),
    "gradcam/ARCC": lambda: metrics.arcc(magnitudes, MODEL, IMAGES, grain=0),
    "Sufficiency": lambda: metrics.sufficiency(MODEL, *COPIES, threshold=0.9),
    "Consistency": lambda: jnp.nan_to_num(  # of an image that is explained like no other, zero there
        metrics.consistency(MODEL, COPIES[0], COPIES[1] - 0.5, code=lambda maps: jnp.sign(maps[:, 0, :2]))
    ),
    "pic/SIC/curve": lambda: curve_of_bytes(metrics.softmax_information_curve).scores[:, ::50],
    "pic/AIC": lambda: curve_of_bytes(metrics.accuracy_information_curve).value,
    "RandomLogit": lambda: metrics.random_logit(
        jaxcam.saliency, lambda x: MODEL(x)[:, :2], IMAGES, TARGETS % 2, similarity=metrics.pearson
    ),
    "NonSensitivity": lambda: 192 * metrics.non_sensitivity(grey, still(), GOLDEN["sparse"], GREY_TARGETS, window=1),
}


@pytest.mark.parametrize("name", ROWS)
def test_agrees_with_quantus(name):
    ours, theirs = np.asarray(ROWS[name]()), QUANTUS[name]
    known = np.isfinite(theirs)  # one changed prediction among the changes makes NaN of Quantus's relative stability
    assert known.sum() >= len(theirs) - 1 and np.isfinite(ours).all()
    tolerance = 0.01 if name.startswith("pic") else 1e-5  # another version of WebP writes files of other sizes
    np.testing.assert_allclose(ours[known], theirs[known], rtol=1e-3, atol=tolerance)


# Where Quantus departs from the paper, or has no such metric


WEIGHTS = np.random.default_rng(5).standard_normal((6, 8)).astype(np.float32)
IMAGE = np.random.default_rng(6).standard_normal((1, 6, 8, 1)).astype(np.float32)
LOGIT = {"score": jaxcam.score.logit, "baseline": None}


def linear(images):
    """Two classes; the effect of each pixel is known."""
    total = jnp.sum(images[..., 0] * WEIGHTS, (1, 2))
    return jnp.stack([total, -total], -1)


def test_the_perfect_explanation_of_a_linear_model():
    perfect = IMAGE[..., 0] * WEIGHTS
    maps = np.concatenate([perfect, -perfect, perfect[:, ::-1]])
    images = np.repeat(IMAGE, 3, 0)
    sets = metrics.sensitivity_n(linear, images, maps, 0, cells=(6, 8), num_samples=8, fractions=(0.2, 0.5), curve=True)
    np.testing.assert_allclose(sets.scores[:2], [[1, 1], [-1, -1]], atol=1e-5)
    assert float(sets.value[2]) < 0.9 and sets.fractions.tolist() == pytest.approx([0.2, 0.5])
    errors = metrics.completeness(linear, images, maps, 0)
    np.testing.assert_allclose(errors[:2], [0, 2 * abs(perfect.sum())], atol=1e-5)
    against = metrics.completeness(linear, images, np.zeros_like(maps), 0, baseline=1.0)
    np.testing.assert_allclose(against, abs(perfect.sum() - WEIGHTS.sum()), rtol=1e-5)
    effects = metrics.monotonicity_correlation(linear, images, maps, 0, num_steps=48, **LOGIT)
    np.testing.assert_allclose(effects[:2], 1, atol=1e-5)  # the magnitude of each pixel is its very effect
    assert float(effects[2]) < 0.9


def test_monotonicity_is_of_the_images_pixels_and_not_of_the_baselines():
    """Pixels that all raise the score go in without a fall in any order; one that lowers it does not, unless first."""
    images = np.abs(np.repeat(IMAGE, 3, 0))
    up = {"score": lambda output, _: output, **{k: v for k, v in LOGIT.items() if k != "score"}}

    def falls_at_the_first_pixel(images):
        return jnp.sum(images[..., 0] * jnp.ones((6, 8)).at[0, 0].set(-1), (1, 2))

    order = np.arange(48, dtype=np.float32).reshape(1, 6, 8)
    maps = np.concatenate([order, -order, order])
    curve = metrics.monotonicity(falls_at_the_first_pixel, images, maps, 1, num_steps=48, curve=True, **up)
    np.testing.assert_array_equal(curve.value, [1, 0, 1])  # from the first score on, as in the paper's own code
    np.testing.assert_allclose(curve.scores[1, 0], images[1, 5, 7, 0], rtol=1e-6)  # the lowest pixel is the last one
    np.testing.assert_allclose(curve.scores[:, -1], falls_at_the_first_pixel(images), rtol=1e-5)


def test_sensitivity_of_one_size_is_mu_fidelity():
    options = {"cells": 4, "num_samples": 8, "score": jaxcam.score.probability}
    one = metrics.sensitivity_n(MODEL, IMAGES, HEATMAPS, fractions=(0.3,), **options)
    np.testing.assert_allclose(one, metrics.mu_fidelity(MODEL, IMAGES, HEATMAPS, fraction=0.3, **options), atol=1e-6)


def test_what_regions_make_of_the_curve():
    """Of numbers that are counted by hand: three of four equal patches, then of segments of which one image has two."""
    image = np.array([[1, 1, 2, 2, 3, 3, 4, 4]], np.float32)[:, None, :, None]
    total = {"score": lambda output, _: output, "baseline": None}

    def brightness(images):
        return images.sum((1, 2, 3))

    curve = metrics.region_perturbation(
        brightness, image, image[..., 0], 1, window=(1, 2), num_steps=3, curve=True, **total
    )
    np.testing.assert_allclose(curve.scores, [[20, 12, 6, 2]])
    np.testing.assert_allclose(curve.value, (0 + 8 + 14 + 18) / 4)
    area = metrics.selectivity(brightness, image, image[..., 0], 1, window=(1, 2), **total)
    np.testing.assert_allclose(area, (20 / 2 + 12 + 6 + 2 + 0 / 2) / 4)
    segments = np.stack([np.repeat(np.arange(4), 2), np.repeat([0, 2], 4)])[:, None].astype(np.int32)
    pair = np.repeat(image, 2, 0)
    areas = metrics.irof(brightness, pair, pair[..., 0], 1, segments=segments, **total)
    np.testing.assert_allclose(areas, [1 - (10 + 12 + 6 + 2) / 80, 1 - (20 / 2 + 6 + 0) / 40], rtol=1e-6)


def test_stability_without_a_change_that_keeps_the_class_is_unknown():
    far = {"perturbation": lambda key, image: -2 * image, "num_samples": 2}
    value = metrics.relative_input_stability(jaxcam.saliency, linear, np.repeat(IMAGE, 2, 0), **far)
    assert np.isnan(value).all()  # all pixels turned around, and so is the class


def test_noise_of_an_image_of_its_own_range():
    """In units of the pixel and as a share of the range of each image; of the image itself, which is explained."""
    images = IMAGES * jnp.array([1.0, 2.0, 4.0])[:, None, None, None]
    span = jnp.ptp(images, (1, 2, 3))
    options = {"perturbation": "noise", "num_samples": 3, "key": 1}
    share = metrics.local_lipschitz(lambda x: 3 * x, images, noise=0.1, **options)
    np.testing.assert_allclose(share, 3, rtol=1e-5)
    for metric in (metrics.max_sensitivity, metrics.average_sensitivity):
        share, absolute = (
            metric(lambda x: x, images, **which, **options) for which in ({"noise": 0.1}, {"deviation": 0.1})
        )
        np.testing.assert_allclose(share / absolute, span, rtol=1e-4)
    assert np.all(
        metrics.max_sensitivity(lambda x: x, images, **options)
        > metrics.average_sensitivity(lambda x: x, images, **options)
    )


# Where the object is


def boxes_by_scipy(heatmap, levels):
    """The corners of the box around the largest part at each level."""
    scaled = (heatmap - heatmap.min()) / np.ptp(heatmap)
    for level in levels:
        parts = ndimage.label(scaled >= level, np.ones((3,) * heatmap.ndim))[0]
        sizes = np.bincount(parts.ravel())[1:]
        ends = np.array([np.flatnonzero(parts == 1 + part)[-1] for part in range(len(sizes))])
        largest = np.argwhere(parts == 1 + np.lexsort((ends, sizes))[-1])  # of equal ones the one that ends last
        yield largest.min(0), largest.max(0) + 1


@pytest.mark.parametrize("space", [(24, 31), (60,), (5, 6, 7)], ids=str)
def test_boxes_are_around_the_largest_part(space):
    rng = np.random.default_rng(8)
    maps = ndimage.gaussian_filter(rng.standard_normal((3, *space)), (0, *(1.2,) * len(space))).astype(np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[(slice(None), *(slice(side // 4, side * 3 // 4) for side in space))] = True
    levels = np.arange(10, dtype=np.float32) / 10
    expected = []
    for heatmap, mask in zip(maps, masks, strict=True):
        inside = np.argwhere(mask)
        begin, end = inside.min(0), inside.max(0) + 1
        for low, high in boxes_by_scipy(heatmap, levels):
            common = np.prod(np.maximum(np.minimum(high, end) - np.maximum(low, begin), 0))
            expected.append(common / (np.prod(high - low) + np.prod(end - begin) - common) >= 0.15)
    curve = metrics.max_box_acc(maps, masks, threshold=0.15, num_steps=10, curve=True, chunk_size=7)
    np.testing.assert_array_equal(curve.scores, np.reshape(expected, (3, 10)))
    assert 0 < curve.scores.mean() < 1
    np.testing.assert_array_equal(curve.value, curve.scores[:, curve.scores.mean(0).argmax()])


def test_the_longest_part_is_one():
    """A spiral, whose ends are far apart, beside a part of nearly as many pixels."""
    spiral = np.array(
        [list(row) for row in ["#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######"]]
    )
    heatmap = np.zeros((1, 7, 20), np.float32)
    heatmap[0, :, :7], heatmap[0, :5, 13:] = spiral == "#", 1  # 32 pixels and 35
    heatmap[0, 0, 13:17] = 0
    mask = np.zeros(heatmap.shape, bool)
    mask[..., :7] = True
    assert metrics.max_box_acc(heatmap, mask, threshold=1.0, num_steps=2, curve=True).scores.tolist() == [[0, 1]]
    assert float(metrics.max_box_acc(np.zeros_like(heatmap), mask)[0]) == 0


def test_focus_of_a_method_that_sees_the_class_and_of_one_that_does_not():
    """Each image is of one brightness, its class."""
    classes = jnp.array([0, 1, 2, 0, 1])
    images = jnp.broadcast_to(1.0 + classes[:, None, None, None], (5, 3, 4, 2))
    seen = []

    def perfect(model, mosaics, targets):
        seen.append(mosaics)
        return (mosaics == 1.0 + targets[:, None, None, None]).astype(jnp.float32)

    def model(images):
        return jnp.zeros((len(images), 3))

    np.testing.assert_allclose(metrics.focus(perfect, model, images, classes), 1)
    np.testing.assert_allclose(metrics.focus(lambda _, x, __: jnp.ones(x.shape[:3]), model, images, classes), 0.5)
    assert seen[0].shape == (5, 6, 8, 2)
    own = (seen[0] == 1.0 + np.asarray(classes)[:, None, None, None]).mean((1, 2, 3))
    np.testing.assert_allclose(own, 0.5)
    mosaics = np.asarray(seen[0])
    corners = mosaics[:, ::3, ::4, 0]  # one pixel of each tile, which are whole
    np.testing.assert_array_equal(np.repeat(np.repeat(corners, 3, 1), 4, 2), mosaics[..., 0])
    with pytest.raises(ValueError, match="All images are of one class"):
        metrics.focus(perfect, model, images, 1)
    inside = jax.jit(lambda x, targets: metrics.focus(perfect, model, x, targets))
    assert np.isnan(inside(images, jnp.full(5, 1))).all()


# Other weights, other classes


def test_efficient_mprt_is_of_the_histogram():
    maps = np.random.default_rng(9).standard_normal((3, 20, 30)).astype(np.float32)
    counts = [np.histogram(each, 30)[0] / 600 for each in maps]
    expected = [-np.sum(share[share > 0] * np.log(share[share > 0])) for share in counts]
    np.testing.assert_allclose(metrics.histogram_entropy(maps, num_bins=30), expected, rtol=1e-4)
    np.testing.assert_array_equal(metrics.histogram_entropy(np.ones((2, 4, 4))), 0)

    def never_looks(model, images, targets):
        return images[..., 0]

    np.testing.assert_array_equal(metrics.efficient_mprt(never_looks, MODEL, IMAGES), 0)
    np.testing.assert_array_equal(metrics.efficient_mprt(lambda *_: jnp.ones((3, 4)), MODEL, IMAGES), 0)
    twice = metrics.efficient_mprt(jaxcam.saliency, MODEL, IMAGES, complexity=lambda maps: jnp.abs(maps).sum((1, 2, 3)))
    maps = [metrics.efficient_mprt(jaxcam.saliency, MODEL, IMAGES, key=key) for key in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.allclose(maps[0], maps[2]) and not np.allclose(maps[0], twice)


def test_the_smooth_test_takes_the_noise_off():
    """Of a method that only adds noise of its own, which a mean over the copies takes off."""

    def noisy(model, images, targets):
        return GOLDEN["heatmaps"] + jnp.sin(1e4 * images[..., 0])

    seen = []

    def similarity(a, b):
        seen.extend([a, b])
        return metrics.pearson(a, b)

    options = {"layers": ["dense"], "similarity": similarity, "noise": 0.5}
    values = metrics.smooth_mprt(noisy, MODEL, IMAGES, num_samples=64, **options)
    assert list(values) == ["dense"]
    np.testing.assert_array_equal(*seen[:2])  # the same copies for both models
    assert np.abs(seen[0] - GOLDEN["heatmaps"]).max() < 0.5 < np.abs(noisy(0, IMAGES, 0) - GOLDEN["heatmaps"]).max()


def test_the_other_class_is_any_other():
    images = np.zeros((64, 2, 2, 1), np.float32)
    classes = np.arange(64) % 4
    drawn = []

    def method(model, images, targets):
        drawn.append(np.asarray(targets))
        return jnp.ones((len(images), 4)) * targets[:, None]

    metrics.random_logit(method, lambda x: jnp.zeros((len(x), 4)), images, classes)
    others, given = drawn
    np.testing.assert_array_equal(given, classes)
    assert (others != classes).all() and len(set(zip(others.tolist(), classes.tolist(), strict=True))) == 12
    metrics.random_logit(method, lambda x: jnp.zeros((len(x), 4)), images[:5], classes[:5])
    np.testing.assert_array_equal(drawn[2], others[:5])  # whatever stands beside an image
    with pytest.raises(ValueError, match="no logits of two classes"):
        metrics.random_logit(method, lambda x: jnp.zeros((len(x), 1, 4)), images, classes)


# Wholes of several parts


def test_adcc_is_the_harmonic_mean_of_its_parts():
    maps = magnitudes(MODEL, IMAGES, TARGETS)
    parts = [metrics.coherency(magnitudes, MODEL, IMAGES, baseline="mean"), 1 - maps.mean((1, 2))]
    parts.append(1 - metrics.average_drop(MODEL, IMAGES, maps, baseline="mean"))
    whole = metrics.adcc(magnitudes, MODEL, IMAGES, baseline="mean")
    np.testing.assert_allclose(whole, 3 / sum(1 / each for each in parts), rtol=1e-5)
    assert np.all(whole > 0)
    none = metrics.adcc(lambda _, x, __: jnp.ones(x.shape[:3]), MODEL, IMAGES)  # shows all: as complex as can be
    np.testing.assert_array_equal(none, 0)
    np.testing.assert_allclose(metrics.coherency(lambda _, x, __: jnp.ones(x.shape[:3]), MODEL, IMAGES), 0.5)


def test_alike_is_of_the_same_cell_and_of_a_small_distance():
    """Four maps, two of which point at one place, and one more class than maps."""
    maps = np.zeros((4, 8, 12), np.float32)
    maps[0, 1, 1] = maps[1, 0, 2] = maps[2, 7, 11] = maps[3, 1, 0] = 1

    def model(images):
        return images.sum((1, 3))

    images = np.broadcast_to(np.eye(12, dtype=np.float32)[[2, 2, 2, 0]][:, None, :, None], (4, 8, 12, 1))
    assert metrics.strongest_cell(maps).tolist() == [0, 0, 15, 0]
    assert metrics.strongest_cell(maps, (8, 12)).tolist() == [13, 2, 95, 12]
    np.testing.assert_array_equal(metrics.consistency(model, images, maps), [0.5, 0.5, np.nan, 0])
    line = np.arange(4, dtype=np.float32)[:, None, None] ** 2 * np.ones((1, 8, 12), np.float32)  # 0, 1, 4, 9
    np.testing.assert_array_equal(metrics.sufficiency(model, images, line, threshold=0.4), [1, 1, 1, np.nan])
    np.testing.assert_allclose(metrics.sufficiency(model, images, line, threshold=0.6), [1, 1, 2 / 3, 0])
    np.testing.assert_allclose(metrics.sufficiency(model, images, line, threshold=1), [2 / 3, 2 / 3, 2 / 3, 0])


# How much of the picture


def test_what_an_information_curve_cannot_be_drawn_of(as_user):
    images, maps, _, weights = pictures()
    images = images.astype(np.float32)

    def model(images):
        logits = jnp.sum(images / 255 * weights, (1, 2, 3)) - 6
        return jnp.stack([logits, jnp.zeros_like(logits)], -1)

    options = {"fractions": (0.1, 0.4)}
    unlike = metrics.softmax_information_curve(model, images, maps, np.array([0, 1]), **options)
    np.testing.assert_array_equal(np.isnan(unlike), [False, True])  # for the other class the blurred image is better
    again = metrics.accuracy_information_curve(model, images[:1], maps[:1], **options, curve=True)
    assert np.all(np.diff(again.scores) >= 0) and again.scores.shape == (1, 1001) and 0 < float(again.value[0]) < 1
    other = metrics.accuracy_information_curve(model, images[:1], maps[:1], **options, key=1)
    assert float(other[0]) != float(again.value[0])
    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(lambda x: metrics.softmax_information_curve(model, x, maps))(images)
    with pytest.raises(ValueError, match="the size of files is that of pictures"):
        metrics.accuracy_information_curve(model, images[..., :2], maps)
    with pytest.raises(ValueError, match="of two rows and columns or more"):
        metrics.accuracy_information_curve(model, images[:, :1], maps[:, :1])
    with pytest.raises(ValueError, match="softmax_information_curve needs more than an image and its heatmap"):
        work_of(MODEL, methods=["saliency"], metrics=["softmax_information_curve"])
    grey = metrics.softmax_information_curve(lambda x: model(jnp.repeat(x, 3, -1)), images[..., :1], maps, **options)
    assert grey.shape == (2,)


# What all of them promise

MAPPED = [
    row for row in metrics.METRICS.values() if row.needs in ("explain", "method", "batch") and row.gives == "values"
]
FEW = {"num_samples": 2, "num_steps": 4}


@pytest.mark.parametrize("row", MAPPED, ids=lambda row: row.name)
def test_compiled_it_is_the_same_and_nothing_is_moved_in_secret(row):
    """One number for each image."""
    options = {key: value for key, value in FEW.items() if key in inspect.signature(row.function).parameters}
    model, images = helpers.small(pooled=True), helpers.images(3)  # which takes mosaics
    maps, classes = jnp.abs(images[..., 0]), jnp.array([0, 1, 2])

    def measure(model, images):
        match row.needs:
            case "explain":
                return row.function(lambda x: jaxcam.grad_cam(model, x, classes), images, **options)
            case "method":
                return row.function(jaxcam.grad_cam, model, images, classes, **options)
        return row.function(model, images, maps, **options)

    with jax.transfer_guard("disallow"):
        eager = measure(model, images)
    assert eager.shape == (3,) and eager.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(measure)(model, images), eager, rtol=1e-3, atol=1e-5)
