"""XRAI and the segments that it takes: against the code of the paper's authors, and on models with known answers."""

import sys
from functools import cache, partial
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

import jaxcam
from jaxcam import segments

SHAPE = (5, 7, 3)
WEIGHTS = jax.random.normal(jax.random.key(1), SHAPE)


def product(weights, images):
    return (images * weights).sum((1, 2, 3))[:, None]


def weighted(weights):
    """A linear model, as a tap: it is compiled once for all weights of a shape."""
    return jaxcam.tap(product, jnp.asarray(weights, jnp.float32))


linear = weighted(WEIGHTS)


@pytest.fixture(scope="module")
def images():
    return helpers.images(2, *SHAPE[:2])


def close(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found, expected, atol=rtol * float(np.abs(expected).max()))


# --- Against the code of the paper's authors ---


@cache
def golden() -> dict[str, np.ndarray]:
    """A picture of 224 x 240 pixels, the weights of a linear model, its segments, and the authors' maps."""
    with np.load(Path(__file__).parent / "golden" / "xrai.npz") as file:
        stored = dict(file)
    stored["images"] = (stored["pixels"] / np.float32(127.5) - 1)[None]
    stored["masks"] = np.unpackbits(stored["masks"], axis=0, count=int(stored["count"])).astype(bool)
    patches = np.kron(stored["weights"], np.ones((16, 16, 1)))
    weights = patches + np.sin(np.arange(patches.size)).reshape(patches.shape)  # no two segments are equally dense
    stored["model"] = weighted(weights)
    return stored


def test_felzenszwalbs_segments_are_the_authors():
    """Every mask of every scale, in their order."""
    pytest.importorskip("skimage")
    found = segments.felzenszwalb(golden()["images"])
    assert found.dtype == bool and found.shape[0] == 1
    np.testing.assert_array_equal(found[0], golden()["masks"])


@pytest.mark.parametrize("name", ["default", "few", "sum"])
def test_xrai_is_the_authors(name):
    """Same attributions, same segments: same regions in the same order, and the same map; also with few segments."""
    masks, expected = golden()["masks"], golden()[name]
    options = {
        "default": {"segments": masks},
        "few": {"segments": masks[None, ::5], "min_pixels": 900},  # some of the image falls to no segment
        "sum": {"segments": masks, "channels": "sum"},
    }[name]
    [found] = jaxcam.xrai(golden()["model"], golden()["images"], 1, num_steps=1, **options)
    close(found, expected)
    np.testing.assert_array_equal(np.unique(found, return_inverse=True)[1], np.unique(expected, return_inverse=True)[1])


def test_the_default_is_the_authors_from_the_picture_on():
    pytest.importorskip("skimage")
    close(jaxcam.xrai(golden()["model"], golden()["images"], 1, num_steps=1)[0], golden()["default"])


# --- Known answers ---


@pytest.mark.parametrize("channels", ["max", "sum"])
def test_xrai_of_a_linear_model_is_the_mean_of_each_segment(images, channels):
    """With one segmentation nothing is greedy, and integrated gradients of a linear model are known."""
    labels = np.arange(5)[:, None] // 2 * 3 + np.arange(7) // 3  # 3x3 blocks, those at the border smaller
    found = jaxcam.xrai(linear, images, 1, segments=labels, channels=channels, num_steps=1)
    middle = (images.min((1, 2, 3), keepdims=True) + images.max((1, 2, 3), keepdims=True)) / 2
    pixels = getattr(np, channels)(WEIGHTS * (images - middle), -1)
    for index, each in enumerate(pixels):
        means = scipy.ndimage.mean(each, labels, np.arange(9))
        close(found[index], means[labels])


def test_xrai_takes_the_densest_segment_first():
    """A bright spot falls to the smallest segment around it, what is left of the large ones to themselves."""
    coarse, fine = np.zeros((5, 7), int), np.zeros((5, 7), int)
    fine[1:3, 2:5] = 1
    spot = np.where(fine[..., None], 6.0, 0.0)
    images = jnp.zeros((1, *SHAPE)).at[0, 1:3, 2:5].set(1.0)
    found = jaxcam.xrai(weighted(spot), images, 1, segments=[coarse, fine], channels="sum", num_steps=2)[0]
    np.testing.assert_allclose(found, np.where(fine, 3 * 6 * 0.5, 0), atol=1e-5)


def test_small_gains_are_passed_over():
    """A segment that adds too few pixels is not taken, nor is one of which too few are left; the rest is one region."""
    masks = np.zeros((3, 5, 7), bool)
    masks[0, :2], masks[1, :3], masks[2, 4, 6] = True, True, True  # 14 pixels, 7 more, and one
    steep = weighted(jnp.full(SHAPE, 0.1).at[:2].set(2).at[2].set(1).at[4, 6].set(9))
    images = jnp.ones((2, *SHAPE)).at[:, 3, 0].set(0)
    found = {least: jaxcam.xrai(steep, images, 1, segments=masks, min_pixels=least)[0] for least in (1, 2, 8, 36)}
    regions = {least: len(np.unique(each)) for least, each in found.items()}
    assert regions == {1: 4, 2: 3, 8: 2, 36: 1}
    np.testing.assert_array_equal(found[1], jaxcam.xrai(steep, images, 1, segments=masks)[0])  # a thousandth of 35


@pytest.mark.parametrize("of_each", [False, True])
def test_labels_masks_and_masks_that_jit_does_not_know_agree(images, of_each):
    """Whatever form the segments have, for all images or for each; the same values under `jit` and `vmap`."""
    random = np.random.default_rng(0)
    fine, coarse = random.integers(0, 6, (2, 2, *SHAPE[:2]))
    if not of_each:
        fine, coarse = fine[0], coarse[0]
    masks = np.concatenate([np.moveaxis(each == np.arange(6)[:, None, None, None], 0, -3) if of_each else
                            each == np.arange(6)[:, None, None] for each in (fine, coarse)], -3)  # fmt: skip
    expected = jaxcam.xrai(linear, images, 1, segments=(fine, coarse))
    assert len(np.unique(expected)) > 8

    def explain(images, masks):
        return jaxcam.xrai(linear, images, 1, segments=masks)

    close(explain(images, masks), expected)
    close(explain(images, [masks[..., :6, :, :], coarse]), expected)
    close(jax.jit(explain)(images, masks), expected)
    close(
        jax.vmap(lambda *each: explain(each[0][None], each[1])[0], (0, 0 if of_each else None))(images, masks), expected
    )


def test_images_have_segments_of_their_own():
    """As many as each has, whatever the others have."""
    images = jnp.stack([jnp.zeros(SHAPE).at[:, 4:].set(1), jnp.ones(SHAPE).at[0].set(0)])
    labels = np.stack([np.arange(7) // 4 + np.zeros((5, 1), int), np.arange(35).reshape(5, 7)])
    both = jaxcam.xrai(linear, images, 1, segments=labels)
    for index in range(2):
        close(jaxcam.xrai(linear, images[index : index + 1], 1, segments=labels[index])[0], both[index])


def test_the_gradient_flows_through_the_means(images):
    """The choice of regions is taken as given; the means within them change with the attributions."""
    labels = np.arange(7) // 3 + np.zeros((5, 1), int)
    grown = jax.grad(
        lambda weights: jaxcam.xrai(weighted(weights), images, 1, segments=labels, channels="sum")[0, 0, 0]
    )
    middle = (images[0].min() + images[0].max()) / 2
    close(grown(WEIGHTS), np.where(labels[..., None] == 0, images[0] - middle, 0) / 15)


# --- The default ---


def test_by_default_it_looks_at_the_images_and_jit_says_that_it_cannot(as_user):
    """No other result under `jit`, but a sentence; what it names works there."""
    pytest.importorskip("skimage")
    model, images = helpers.small(), helpers.images()
    expected = jaxcam.xrai(model, images, 1, num_steps=2)
    explain = jax.jit(lambda images, **options: jaxcam.xrai(model, images, 1, num_steps=2, **options))
    with pytest.raises(ValueError, match=r"not known while jit or vmap traces.*felzenszwalb\(images\)"):
        explain(images)
    close(explain(images, segments=segments.felzenszwalb(images)), expected)
    with pytest.raises(ValueError, match=r"The labels in segments are not known while jit traces.*or masks"):
        explain(images, segments=segments.grid((12, 16), 3))


def test_explain_calls_it_by_itself():
    """In the order of the methods, with options, and from a partial."""
    pytest.importorskip("skimage")
    model, images = helpers.small(), helpers.images()
    found = jaxcam.explain(model, images, 1, methods={"xrai": {"num_steps": 2}, "saliency": {}})
    assert list(found) == ["xrai", "saliency"]
    close(found["xrai"], jaxcam.heatmap(jaxcam.xrai(model, images, 1, num_steps=2), images))
    labels = segments.grid((12, 16), 3)
    alone = jaxcam.explain(model, images, 1, methods={"xrai": {"num_steps": 2, "segments": labels}})["xrai"]
    assert not np.allclose(alone, found["xrai"])


def test_signals_and_volumes_are_cut_into_equal_parts():
    """Of several sizes; they have the same map under `jit`."""
    model = jaxcam.tap(
        lambda scale, x: jnp.tanh(scale * x).reshape(len(x), -1).sum(1, keepdims=True) ** 2, jnp.ones(())
    )
    for shape in ((2, 40, 3), (2, 8, 9, 10, 1)):
        images = jax.random.normal(jax.random.key(0), shape)
        found = jaxcam.xrai(model, images, num_steps=2)
        assert found.shape == shape[:-1] and len(np.unique(found[0])) > 8
        close(jax.jit(partial(jaxcam.xrai, num_steps=2))(model, images), found)


# --- Felzenszwalb's segments ---


def test_segments_follow_the_edges_at_every_scale():
    """Two halves of different colours: without dilation no mask lies on both sides; with it they reach over."""
    pytest.importorskip("skimage")
    images = np.array(0.02 * helpers.images(2, 24, 32))
    images[0, :, :13] += (2, -1, 0)
    images[1, 9:] += (0, 1, 2)
    masks = segments.felzenszwalb(images, scales=(100, 1200), dilation=0)
    assert masks.any((2, 3)).sum(1).min() >= 4  # two halves at two scales
    assert not (masks[0, :, :, :13].any((1, 2)) & masks[0, :, :, 13:].any((1, 2))).any()
    assert not (masks[1, :, :9].any((1, 2)) & masks[1, :, 9:].any((1, 2))).any()
    np.testing.assert_array_equal(masks.sum(1), 2)  # every pixel, once at each scale
    np.testing.assert_array_equal(segments.felzenszwalb(images * 3 + 5, scales=(100, 1200), dilation=0), masks)
    grown = segments.felzenszwalb(images, scales=(100, 1200), dilation=2)
    disc = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2
    for one, other in zip(masks.reshape(-1, 24, 32), grown.reshape(-1, 24, 32), strict=True):
        np.testing.assert_array_equal(scipy.ndimage.binary_dilation(one, disc), other)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 3, 1), (1, 1, 3), (9, 4, 5)])
def test_images_without_edges_or_pixels(shape):
    """Something to take from every image; warnings are errors here."""
    pytest.importorskip("skimage")
    for images in (np.zeros((1, *shape), np.float32), np.asarray(jax.random.normal(jax.random.key(0), (1, *shape)))):
        masks = segments.felzenszwalb(images)
        assert masks.shape[2:] == shape[:2] and masks.any(1).all()


def test_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcam-xai\[superpixels\]'"):
        jaxcam.xrai(helpers.small(), helpers.images(), 1)


def test_argument_errors(as_user, images):
    wrong = [
        (np.zeros((4, 5, 7), int), r"segments has shape \(4, 5, 7\); for images .* labels must be \[5, 7\], for all"),
        (np.zeros((5, 7), bool), r"segments has shape \(5, 7\); for images .* masks must be \[s, 5, 7\], for all"),
        (np.zeros((3, 4, 5, 7), bool), r"masks must be .* or \[2, s, 5, 7\], for each"),
        (np.zeros((0, 5, 7), bool), "masks must be"),
        (np.full((5, 7), -1), "holds the label -1"),
        (np.zeros((5, 7)), r"is of type float64; it must hold labels \(whole numbers\), or masks"),
        ([np.zeros((5, 7), int), "x"], r"segments\[1\] is of type str"),
        ([], "segments is empty"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            jaxcam.xrai(linear, images, 1, segments=given)
    with pytest.raises(ValueError, match="Unknown channels 'mean'. Did you mean 'max'?"):
        jaxcam.xrai(linear, images, 1, channels="mean")
    with pytest.raises(ValueError, match="min_pixels is 0"):
        jaxcam.xrai(linear, images, 1, min_pixels=0)
    for options in ({"scales": ()}, {"scales": (0,)}, {"sigma": -1}, {"dilation": -1}, {"min_size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            segments.felzenszwalb(images, **options)
    with pytest.raises(ValueError, match=r"cuts images, \[n, h, w, c\].*grid"):
        segments.felzenszwalb(np.ones((2, 20, 3), np.float32))
