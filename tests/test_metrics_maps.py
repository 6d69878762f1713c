"""Metrics of maps alone: similarity, localisation, complexity; against SciPy, scikit-image, Quantus and small cases."""

import inspect
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from jaxcam import metrics

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")
SIMILARITIES = [metrics.pearson, metrics.spearman, metrics.iou_top, metrics.ssim, metrics.cosine]
LOCALIZATIONS = [
    metrics.pointing_game,
    metrics.energy_pointing_game,
    metrics.relevance_rank_accuracy,
    metrics.relevance_mass_accuracy,
    metrics.iou_with_mask,
    metrics.top_k_intersection,
    metrics.mask_auc,
]
COMPLEXITIES = [metrics.gini, metrics.entropy, metrics.effective_area]


def by_name(functions):
    return pytest.mark.parametrize("metric", functions, ids=lambda metric: metric.__name__)


@pytest.fixture(scope="module")
def pair():
    return jnp.asarray(GOLDEN["a"]), jnp.asarray(GOLDEN["b"])


# Similarity


def test_similarities_agree_with_other_libraries(pair):
    a, b = pair
    rows = [(x.ravel().astype(float), y.ravel().astype(float)) for x, y in zip(a, b, strict=True)]
    of_scipy = {
        "pearson": [stats.pearsonr(*row).statistic for row in rows],
        "cosine": [1 - distance.cosine(*row) for row in rows],
    }
    np.testing.assert_allclose(metrics.spearman(a, b), GOLDEN["scipy/spearman"], atol=1e-6)
    np.testing.assert_allclose(metrics.pearson(a, b), of_scipy["pearson"], atol=1e-6)
    np.testing.assert_allclose(metrics.cosine(a, b), of_scipy["cosine"], atol=1e-6)
    np.testing.assert_allclose(metrics.ssim(a, b), GOLDEN["skimage/ssim"], atol=1e-5)


@by_name(SIMILARITIES)
def test_similarity_of_a_map_with_itself_is_one(metric, pair):
    np.testing.assert_allclose(metric(pair[0], pair[0]), 1, atol=1e-6)


@by_name(SIMILARITIES)
def test_similarity_is_symmetric_and_takes_each_image_alone(metric, pair):
    a, b = pair
    together = metric(a, b)
    assert together.shape == (4,) and together.dtype == jnp.float32
    np.testing.assert_allclose(metric(b, a), together, atol=1e-6)
    np.testing.assert_allclose(metric(np.asarray(a[2:3]), np.asarray(b[2:3])), together[2:3], atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda a, b: metric(a[None], b[None])[0]))(a, b), together, atol=1e-6)


@by_name(SIMILARITIES)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_maps_have_no_pattern(metric, pair, value):
    constant = jnp.full_like(pair[0], value)
    result = metric(constant, pair[1])
    assert bool(jnp.isfinite(result).all())
    if metric in (metrics.pearson, metrics.spearman, metrics.iou_top):
        np.testing.assert_array_equal(result, 0)
        np.testing.assert_array_equal(metric(constant, constant), 0)
    elif metric is metrics.cosine:
        np.testing.assert_array_equal(result, 0 if value == 0 else metrics.cosine(10 * constant, pair[1]))
    else:
        np.testing.assert_allclose(metric(constant, constant), 1, atol=1e-6)


def test_correlations_ignore_scale_and_offset(pair):
    a, b = pair
    for metric in (metrics.pearson, metrics.spearman):
        np.testing.assert_allclose(metric(1e-20 * a, 1e15 * b), metric(a, b), atol=1e-5)
        np.testing.assert_allclose(metric(-a, 5 + b), -metric(a, b), atol=1e-4)
    np.testing.assert_allclose(metrics.spearman(jnp.exp(3 * a), b), metrics.spearman(a, b), atol=1e-6)


def test_iou_top_counts_the_highest_pixels():
    a = jnp.array([[[9.0, 8.0, 7.0, 6.0], [0.0, 0.0, 0.0, 0.0]]])
    b = jnp.array([[[9.0, 0.0, 7.0, 0.0], [8.0, 6.0, 0.0, 0.0]]])
    np.testing.assert_allclose(metrics.iou_top(a, b, fraction=0.125), 1)
    np.testing.assert_allclose(metrics.iou_top(a, b, fraction=0.25), 1 / 3)  # {9, 8} and {9, 8}, at other places
    np.testing.assert_allclose(metrics.iou_top(a, b, fraction=0.5), 2 / 6)
    # Zeros are the minimum: they are not important, even where too few pixels are above.
    np.testing.assert_allclose(metrics.iou_top(a, b, fraction=0.9), 2 / 6)


@pytest.mark.usefixtures("as_user")
def test_similarity_says_what_is_wrong():
    a = jnp.ones((2, 12, 12))
    with pytest.raises(ValueError, match="must be the same to be compared"):
        metrics.pearson(a, a[:, :6])
    broken = a.at[0, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="NaN"):
        metrics.cosine(a, broken)
    with pytest.raises(ValueError, match="NaN"):
        jax.jit(lambda: metrics.cosine(a, broken))()
    with pytest.raises(TypeError, match="a is a list"):
        metrics.pearson([1.0], a)
    with pytest.raises(ValueError, match="shape .2,."):
        metrics.pearson(a[:, 0, 0], a[:, 0, 0])
    with pytest.raises(ValueError, match="at least 11 along each axis"):
        metrics.ssim(a[:, :8], a[:, :8])
    with pytest.raises(ValueError, match="Turn attributions into heatmaps"):
        metrics.ssim(a[..., None], a[..., None])
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        metrics.iou_top(a, a, fraction=0)


# Localisation


@pytest.mark.parametrize("maps", ["heatmaps", "sparse"])
def test_localization_agrees_with_quantus(maps):
    given, masks = GOLDEN[maps], GOLDEN["masks"]
    for ours, theirs in (
        (metrics.pointing_game, "PointingGame"),
        (metrics.relevance_mass_accuracy, "RelevanceMassAccuracy"),
        (metrics.energy_pointing_game, "RelevanceMassAccuracy"),  # one number, where nothing is negative
    ):
        np.testing.assert_allclose(ours(given, masks), GOLDEN[f"quantus/{theirs}/{maps}"], rtol=1e-5)
    # The third mask is smaller than the non-zero part of each map, so no zeros tie for its last places; nor elsewhere.
    untied = [(each > 0).sum() >= mask.sum() for each, mask in zip(given, masks, strict=True)]
    assert sum(untied) == 3
    expected = GOLDEN[f"quantus/RelevanceRankAccuracy/{maps}"]
    np.testing.assert_allclose(metrics.relevance_rank_accuracy(given, masks), expected, rtol=1e-5)


def test_pointing_game_shares_a_hit_where_quantus_gives_all_of_it():
    assert (GOLDEN["quantus/PointingGame/tied"] == 1).all()
    np.testing.assert_allclose(metrics.pointing_game(GOLDEN["tied"], GOLDEN["masks"]), 0.5)


@by_name(LOCALIZATIONS)
def test_a_map_without_preference_scores_what_chance_would(metric):
    masks = GOLDEN["masks"]
    expected = {metrics.iou_with_mask: 0, metrics.mask_auc: 0.5}.get(metric, masks.mean((1, 2)))
    for value in (0.0, 0.3):
        np.testing.assert_allclose(metric(np.full(masks.shape, value), masks), expected, rtol=1e-5)


@by_name(LOCALIZATIONS)
def test_the_mask_itself_is_the_best_map(metric):
    masks = jnp.asarray(GOLDEN["masks"])
    options = {"fraction": 0.05} if metric is metrics.top_k_intersection else {}  # no more pixels than the mask has
    np.testing.assert_allclose(metric(masks.astype(jnp.float32), masks, **options), 1, rtol=1e-6)
    np.testing.assert_allclose(metric(1.0 - masks, masks), 0, atol=1e-6)


@by_name(LOCALIZATIONS)
def test_localization_takes_each_image_alone(metric):
    heatmaps, masks = jnp.asarray(GOLDEN["heatmaps"]), jnp.asarray(GOLDEN["masks"])
    together = metric(heatmaps, masks)
    assert together.shape == (3,) and together.dtype == jnp.float32
    alone = jax.jit(jax.vmap(lambda a, b: metric(a[None], b[None])[0]))(heatmaps, masks)
    np.testing.assert_allclose(alone, together, rtol=1e-6)
    np.testing.assert_allclose(metric(heatmaps[::-1], 255 * masks[::-1]), together[::-1], rtol=1e-6)


def test_rank_accuracy_shares_the_last_places():
    heatmap = jnp.array([[[5.0, 1.0, 1.0, 1.0]]])
    mask = jnp.array([[[True, True, False, False]]])  # two places: 5 is inside, and one of three equal pixels
    np.testing.assert_allclose(metrics.relevance_rank_accuracy(heatmap, mask), (1 + 1 / 3) / 2, rtol=1e-6)


def test_signed_maps():
    heatmap, mask = jnp.array([[[2.0, -2.0]]]), jnp.array([[[True, False]]])
    np.testing.assert_allclose(metrics.energy_pointing_game(heatmap, mask), 1)
    np.testing.assert_allclose(metrics.relevance_mass_accuracy(heatmap, mask), 0.5)
    channels = jnp.array([[[[1.0, -1.0], [0.0, -2.0]]]])
    np.testing.assert_allclose(metrics.relevance_mass_accuracy(channels, mask), 0.5)


def test_tolerance_is_a_distance():
    heatmap = jnp.zeros((1, 9, 9)).at[0, 1, 2].set(1)
    mask = jnp.zeros((1, 9, 9), bool).at[0, 4, 6].set(True)  # at distance 5
    assert [float(metrics.pointing_game(heatmap, mask, tolerance=each)[0]) for each in (0, 4, 5)] == [0, 0, 1]


def test_iou_with_mask():
    heatmap = jnp.array([[[0.0, 1.0, 0.6, 0.4]]])
    mask = jnp.array([[[False, True, False, True]]])
    np.testing.assert_allclose(metrics.iou_with_mask(heatmap, mask), 1 / 3)
    np.testing.assert_allclose(metrics.iou_with_mask(heatmap, mask, threshold=0.3), 2 / 3)


def test_box_to_mask():
    masks = metrics.box_to_mask(jnp.array([[1.0, 0.0, 3.0, 2.0], [0.6, 1.4, 1.6, 2.4]]), (3, 4))
    expected = [[[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(masks, np.array(expected, bool))


@pytest.mark.usefixtures("as_user")
def test_localization_says_what_is_wrong():
    heatmaps, masks = jnp.ones((2, 4, 4)), jnp.ones((2, 4, 4), bool)
    with pytest.raises(ValueError, match="masks has shape"):
        metrics.pointing_game(heatmaps, masks[:, :2])
    with pytest.raises(ValueError, match="mask of image 1 is empty"):
        metrics.pointing_game(heatmaps, masks.at[1].set(False))
    for metric in LOCALIZATIONS:
        np.testing.assert_array_equal(
            jnp.isnan(jax.jit(metric)(heatmaps, masks.at[1].set(False))), [False, True], err_msg=metric.__name__
        )
    with pytest.raises(ValueError, match="tolerance"):
        metrics.pointing_game(heatmaps, masks, tolerance=-1)
    with pytest.raises(ValueError, match="threshold"):
        metrics.iou_with_mask(heatmaps, masks, threshold=0)
    with pytest.raises(ValueError, match=r"must be \[n, 4\]"):
        metrics.box_to_mask(jnp.ones(4), (3, 3))


# Complexity


@pytest.mark.parametrize("maps", ["heatmaps", "sparse"])
def test_complexity_agrees_with_quantus(maps):
    given = GOLDEN[maps]
    np.testing.assert_allclose(metrics.gini(given), GOLDEN[f"quantus/Sparseness/{maps}"], rtol=1e-4)
    np.testing.assert_allclose(metrics.entropy(given), GOLDEN[f"quantus/Complexity/{maps}"], rtol=1e-5)
    scaled = given / given.max((1, 2), keepdims=True)  # their threshold is absolute, ours relative to the maximum
    areas = [metrics.effective_area(one[None], threshold=float(0.25 / one.max()))[0] for one in given]
    np.testing.assert_allclose(np.array(areas) * 192, GOLDEN[f"quantus/EffectiveComplexity/{maps}"], rtol=1e-6)
    np.testing.assert_allclose(metrics.effective_area(scaled), metrics.effective_area(7 * given))


@by_name(COMPLEXITIES)
def test_complexity_of_one_pixel_and_of_a_uniform_map(metric):
    single = jnp.zeros((1, 3, 4)).at[0, 1, 1].set(-5)
    low, high = {"gini": (1 - 1 / 12, 0), "entropy": (0, np.log(12)), "effective_area": (1 / 12, 1)}[metric.__name__]
    np.testing.assert_allclose(metric(single), low, rtol=1e-6, atol=1e-6)
    for uniform in (jnp.zeros((1, 3, 4)), jnp.ones((1, 3, 4)), jnp.full((1, 3, 2, 2), 1e30)):
        np.testing.assert_allclose(metric(uniform), high, rtol=1e-5, atol=1e-6)


@by_name(COMPLEXITIES)
def test_complexity_takes_each_image_alone(metric):
    heatmaps = jnp.asarray(GOLDEN["heatmaps"])
    together = metric(heatmaps)
    assert together.shape == (3,) and together.dtype == jnp.float32
    alone = jax.jit(jax.vmap(lambda each: metric(each[None])[0]))(-3 * heatmaps)
    np.testing.assert_allclose(alone, together, rtol=1e-5)


@pytest.mark.usefixtures("as_user")
def test_complexity_says_what_is_wrong():
    with pytest.raises(ValueError, match="threshold"):
        metrics.effective_area(jnp.ones((1, 2, 2)), threshold=1.0)
    with pytest.raises(ValueError, match="NaN"):
        metrics.gini(jnp.full((1, 2, 2), jnp.inf))


def test_inside_jit_nan_stays_nan():
    maps = jax.random.uniform(jax.random.key(0), (2, 12, 13))
    broken, masks = maps.at[0, 3, 4].set(jnp.nan), maps > 0.7
    functions = [
        *(partial(metric, b=maps) for metric in (metrics.pearson, metrics.spearman, metrics.iou_top, metrics.ssim)),
        *(partial(metric, masks=masks) for metric in (metrics.pointing_game, metrics.energy_pointing_game)),
        *(partial(metric, masks=masks) for metric in (metrics.relevance_rank_accuracy, metrics.iou_with_mask)),
        *(metrics.gini, metrics.entropy, metrics.effective_area),
    ]
    for function in functions:
        values = jax.jit(function)(broken)
        assert np.isnan(values[0]) and np.isfinite(values[1]), function


def test_structure_is_compared_in_the_unit_range():
    with pytest.raises(ValueError, match=r"ranges from 0 to 2; it must be in \[0, 1\]"):
        metrics.ssim(jnp.linspace(0, 2, 144).reshape(1, 12, 12), jnp.zeros((1, 12, 12)))


# Any number of axes of space


@by_name([*SIMILARITIES, *LOCALIZATIONS, *COMPLEXITIES])
@pytest.mark.parametrize("space", [(40,), (12, 13)])
def test_a_signal_is_an_image_of_one_row_and_an_image_a_volume_of_one_slice(metric, space):
    maps = jax.random.uniform(jax.random.key(0), (2, 2, *space))
    given = {1: maps[:1], 2: maps}[2 if metric in SIMILARITIES else 1]
    given = [*given, maps[1] > 0.7] if metric in LOCALIZATIONS else list(given)
    thick = 11 if metric is metrics.ssim else 1  # its window needs as many; the same in all is as good as one
    copies = [jnp.repeat(each[:, None], thick, 1) for each in given]
    np.testing.assert_allclose(metric(*copies), metric(*given), rtol=1e-4, atol=1e-6)


def test_tolerance_and_boxes_along_any_number_of_axes():
    for axes in (1, 3):
        heatmap = jnp.zeros((1, *(7,) * axes)).at[(0, *(1,) * axes)].set(1)
        corners = [[3] * axes + [5] * axes]
        masks = metrics.box_to_mask(jnp.array(corners), (7,) * axes)
        assert masks.shape == heatmap.shape and masks.sum() == 2**axes and bool(masks[(0, *(3,) * axes)])
        near, far = (metrics.pointing_game(heatmap, masks, tolerance=each)[0] for each in (4, 1))
        assert (float(near), float(far)) == (1, 0)
    volume = metrics.box_to_mask(jnp.array([[0, 1, 2, 4, 3, 3]]), (3, 4, 5))  # x along the last axis, z along the first
    np.testing.assert_array_equal(np.argwhere(volume[0]).min(0), [2, 1, 0])
    np.testing.assert_array_equal(np.argwhere(volume[0]).max(0), [2, 2, 3])


# The registry

ARGUMENTS = {
    "map": ["heatmaps"],
    "maps": ["a", "b"],
    "masks": ["heatmaps", "masks"],
    "model": ["model", "images", "heatmaps", "targets"],
    "batch": ["model", "images", "heatmaps"],
    "explain": ["explain", "images"],
    "method": ["method", "model", "images", "targets"],
    "twin": ["method", "model", "random_label_model", "images", "targets"],
}


@pytest.mark.parametrize("row", metrics.METRICS.values(), ids=metrics.METRICS)
def test_a_row_says_what_the_metric_takes(row):
    parameters = inspect.signature(row.function).parameters.values()
    names = [each.name for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD]
    assert [name.replace("attributions", "heatmaps") for name in names] == ARGUMENTS[row.needs]
    assert row.better in ("high", "low", "near zero", "describes") and row.gives in ("values", "layers")
    assert row.summary and "http" in row.reference
    assert "key" in inspect.signature(row.function).parameters or not row.draws
    assert metrics.METRICS[row.name] is row and getattr(metrics, row.name) is row.function
