"""TCAV and CRAFT on models whose answer is known by hand."""

from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cam_family import tiny

import jaxcam
from jaxcam.attribution import concepts

KEY = jax.random.key(0)
RED = jnp.array([1.0, 0, 0])


def coloured(count, colour, seed, noise=0.3):
    """Images of one colour on a grey ground, with noise."""
    return 0.5 + colour + noise * jax.random.normal(jax.random.key(seed), (count, 6, 8, 3))


def channels(head):
    """A model whose layer is the image itself, with a head on its colours."""
    features = lambda variables, images: images * variables["one"]  # noqa: E731
    return jaxcam.tap((features, lambda variables, activations: head(activations)), {"one": jnp.ones(())})


def colours(activations):
    """Logits: red, less red, red or green whatever is more, blue squared."""
    red, green, blue = jnp.moveaxis(activations.mean((1, 2)), -1, 0)
    return jnp.stack([red, -red, green, jnp.sin(40 * blue)], -1)


# --- TCAV -------------------------------------------------------------------------------------------------------------

RANDOM = jnp.stack([coloured(12, 0, seed) for seed in range(5, 11)])


@pytest.mark.parametrize(("target", "expected"), [(0, 1.0), (1, 0.0)])
def test_a_class_that_rises_and_one_that_falls(target, expected):
    found = jaxcam.tcav(channels(colours), coloured(9, 0, 1), target, concept=coloured(12, RED, 2), random_sets=RANDOM)
    assert found.score == expected and set(found.scores.tolist()) == {expected}
    assert float(found.accuracy.min()) == 1.0  # a step in red is easily told
    red = found.directions.mean((1, 2))
    np.testing.assert_allclose(jnp.linalg.norm(found.directions.reshape(6, -1), axis=1), 1, rtol=1e-5)
    assert (red[:, 0] > 5 * jnp.abs(red[:, 1:]).max(1)).all()
    assert found.sensitivities.shape == (6, 9) and found.null.shape == (6,)
    np.testing.assert_array_equal(found.scores, (np.asarray(found.sensitivities) > 0).mean(1))


def test_a_concept_that_the_class_does_not_use_cannot_be_told_from_chance():
    images = coloured(9, 0, 1)
    used = jaxcam.tcav(channels(colours), images, 0, concept=coloured(12, RED, 2), random_sets=RANDOM)
    unused = jaxcam.tcav(channels(colours), images, 2, concept=coloured(12, RED, 2), random_sets=RANDOM)
    assert used.p_value < 0.2 < unused.p_value
    nothing = jaxcam.tcav(channels(colours), images, 0, concept=coloured(12, 0, 3), random_sets=RANDOM)
    assert float(nothing.accuracy.mean()) < 0.8


def test_the_p_value_is_welchs():
    from scipy.stats import ttest_ind

    a, b = np.random.default_rng(0).normal(size=(2, 7)) * [[1], [3]] + [[0], [2]]
    assert concepts._welch(a, b[:5]) == pytest.approx(ttest_ind(a, b[:5], equal_var=False).pvalue)
    assert [concepts._welch(np.full(3, value), np.ones(3)) for value in (1, 2)] == [1, 0]


def test_sensitivities_are_derivatives():
    """Along a direction, by differences of the model's rest."""
    model, images = helpers.small(), helpers.images(4)
    random_sets = helpers.images(12, seed=3).reshape(2, 6, 12, 16, 3)
    found = jaxcam.tcav(model, images, 1, concept=helpers.images(6, seed=2), random_sets=random_sets)
    A, step = model.features(images), 1e-2
    for direction, expected in zip(found.directions, found.sensitivities, strict=True):
        up, down = (model.head(images)(A + sign * step * direction)[:, 1] for sign in (1, -1))
        np.testing.assert_allclose((up - down) / (2 * step), expected, atol=2e-3)


def test_the_direction_is_that_of_a_logistic_regression():
    """Compared with one in the weights themselves, by gradient descent until nothing moves."""
    x = np.random.default_rng(0).normal(size=(20, 3)) + np.repeat([[1.0, 0, 0], [0, 0, 0]], 10, 0)
    x, y, used = jnp.float32(x), jnp.repeat(jnp.array([1.0, 0.0]), 10), jnp.arange(20) % 5 != 0
    weight, bias = concepts._logistic(x, y, used, 0.05)
    centred = x - (x * used[:, None]).sum(0) / used.sum()
    scale = jnp.sum(centred**2) / len(x)

    def loss(parameters):
        weight, bias = parameters
        margin = x @ weight + bias
        losses = jax.nn.softplus(margin) - y * margin
        return jnp.sum(losses * used) / used.sum() + 0.05 * scale * jnp.sum(weight**2) / 2

    gradient = jax.grad(loss)((weight, bias))
    assert all(float(jnp.abs(each).max()) < 1e-4 for each in gradient)


GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "concepts.npz"))


def test_tcav_agrees_with_captum():
    """With a classifier of the same penalty, directions, derivatives, shares and the held-out accuracy are the same."""
    values = np.random.default_rng(9).normal(size=(4, 9, 3, 12, 16))
    values[0, :, 0] += 0.5
    concept, *sets = np.moveaxis(values.astype(np.float32), 2, -1)
    found = jaxcam.tcav(tiny("late"), sets[2], 3, concept=concept, random_sets=np.stack(sets))
    for number, direction in enumerate(np.moveaxis(found.directions, -1, 1)):
        expected = {name[2:]: value for name, value in GOLDEN.items() if name.startswith(f"{number + 1}/")}
        np.testing.assert_allclose(direction.ravel(), expected["direction"], atol=2e-4)
        np.testing.assert_allclose(found.sensitivities[number], expected["sensitivities"], atol=2e-4)
        np.testing.assert_allclose(found.scores[number], expected["score"], atol=1e-6)
        np.testing.assert_allclose(found.accuracy[number], expected["accuracy"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"random_sets": RANDOM[0]}, ValueError, r"random_sets has shape \(12, 6, 8, 3\); it must be two sets"),
        ({"random_sets": RANDOM[:1]}, ValueError, "two sets or more"),
        ({"concept": coloured(2, RED, 2)}, ValueError, "There are 2 examples of the concept and 12 images in each"),
        ({"penalty": 0.0}, ValueError, "penalty is 0.0; it must be above 0"),
        ({"targets": jnp.zeros((9, 2), int)}, ValueError, r"targets has shape \(9, 2\); tcav takes one class"),
    ],
)
def test_tcav_says_what_is_wrong(options, error, message):
    given = {"concept": coloured(3, RED, 2), "random_sets": RANDOM, "targets": 0}
    with pytest.raises(error, match=message):
        jaxcam.tcav(channels(colours), coloured(9, 0, 1), **{**given, **options})


def test_concepts_need_a_layer(as_user):
    with pytest.raises(TypeError, match="craft needs activations"):
        jaxcam.craft(lambda images: images, helpers.images())
    both = jaxcam.tap(helpers.small().network.module, helpers.small().variables, ["early", "late"])
    with pytest.raises(ValueError, match="craft looks at one layer, and 2 are tapped"):
        jaxcam.craft(both, helpers.images())


# --- CRAFT ------------------------------------------------------------------------------------------------------------


def halves(count=4):
    """Red on the left and green on the right, of another strength in each image."""
    strength = jnp.linspace(1, 2, count)[:, None, None, None]
    left = jnp.arange(16)[None, None, :, None] < 8
    return strength * jnp.where(left, RED, jnp.array([0, 1.0, 0])) * jnp.ones((count, 12, 16, 3))


def two_of_three(activations):
    """Three times as much of red as of green."""
    means = activations.mean((1, 2))
    return jnp.stack([3 * means[:, 0] + means[:, 1], -means[:, 2]], -1)


@pytest.fixture(scope="module")
def crafted():
    return jaxcam.craft(channels(two_of_three), halves(), 0, num_components=2, window=0.25, num_samples=256)


def test_concepts_are_found_and_placed(crafted):
    red, green = np.asarray(crafted.components)
    assert red[0] > 50 * red[1:].max() and green[1] > 50 * np.delete(green, 1).max()
    maps, half = np.asarray(crafted.maps), slice(0, 8)
    assert maps.shape == (4, 2, 12, 16)
    np.testing.assert_allclose(maps[:, 0, :, half] * red[0], halves()[:, :, half, 0], rtol=0.02)
    assert maps[:, 0, :, 8:].max() < 0.02 and maps[:, 1, :, half].max() < 0.02


def test_importance_is_the_share_of_the_variance(crafted):
    """The score is `(3 m_red + m_green) s / 2` with masks of the same variance: shares of 9 and 1 in 10."""
    np.testing.assert_allclose(crafted.importance, [0.9, 0.1], atol=0.02)


def test_crops_show_the_concept(crafted):
    assert crafted.window == (3, 4) and all(type(side) is int for side in crafted.window)
    assert crafted.crops.shape == (2, 5, 3)
    for concept, crops in enumerate(crafted.crops):
        for image, y, x in crops:
            part = halves()[image, y : y + 3, x : x + 4]
            assert part.shape == (3, 4, 3) and float(part[..., concept].min()) > 0
            assert image == 3  # the strongest


def test_crops_overlap_by_a_fifth_and_reach_both_ends():
    corners = concepts._corners((12, 16), (3, 4))
    assert sorted(set(corners[:, 0])) == [0, 2, 4, 6, 8, 9]
    assert sorted(set(corners[:, 1])) == [0, 3, 6, 9, 12] and len(corners) == 30


def test_maps_of_other_images(crafted):
    maps = jaxcam.craft_maps(channels(two_of_three), halves()[:, :, ::-1], crafted.components)
    np.testing.assert_allclose(maps, np.asarray(crafted.maps)[..., ::-1], atol=0.02)
    with pytest.raises(ValueError, match=r"components has shape \(2, 5\), and the layer has 3 channels"):
        jaxcam.craft_maps(channels(two_of_three), halves(), jnp.ones((2, 5)))


def test_chunks_change_nothing():
    model, images = helpers.small("early"), helpers.images(3)
    options = {"num_components": 3, "num_samples": 4, "window": 0.5, "num_iterations": 20}
    whole, parts = (jaxcam.craft(model, images, 1, chunk_size=chunk, **options) for chunk in (None, 4))
    np.testing.assert_allclose(whole.importance, parts.importance, atol=1e-4)
    np.testing.assert_allclose(whole.maps, parts.maps, atol=1e-3)
    assert float(whole.importance[0]) == float(whole.importance.max()) > 0


def test_craft_takes_one_class():
    with pytest.raises(ValueError, match=r"targets has shape \(4, 2\); craft takes one class for each image"):
        jaxcam.craft(channels(two_of_three), halves(), jnp.zeros((4, 2), int))


@pytest.mark.parametrize("window", [0.0, 1.5, float("nan")])
def test_a_window_is_a_share(window):
    with pytest.raises(ValueError, match="window is"):
        jaxcam.craft(helpers.small(), helpers.images(), window=window)
