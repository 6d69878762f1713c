"""Scores: what each explains, and that they go through `jit` without compiling again."""

from functools import partial

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam import score

LOGITS = jnp.array([[1.0, 2.0, 4.0], [0.0, -1.0, 3.0]])
TARGETS = jnp.array([2, 1])


def test_values():
    np.testing.assert_allclose(score.logit(LOGITS, TARGETS), [4, -1])
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    np.testing.assert_allclose(score.probability(LOGITS, TARGETS), [softmax[0, 2], softmax[1, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        score.log_probability(LOGITS, TARGETS), np.log([softmax[0, 2], softmax[1, 1]]), rtol=1e-6
    )
    np.testing.assert_allclose(score.counterfactual(LOGITS, TARGETS), [-4, 1])
    np.testing.assert_allclose(score.contrast(0)(LOGITS, TARGETS), [3, -1])
    np.testing.assert_allclose(score.cosine_similarity([1.0, 0.0, 0.0])(LOGITS, None), [1 / 21**0.5, 0], atol=1e-6)


def test_pixels():
    output = jax.random.normal(jax.random.key(0), (2, 3, 4, 3))
    mask = jnp.zeros((3, 4)).at[1, 2].set(1)
    np.testing.assert_allclose(score.pixels()(output, TARGETS)[1], output[1, ..., 1].sum(), rtol=1e-5)
    np.testing.assert_allclose(score.pixels(mask)(output, TARGETS), [output[0, 1, 2, 2], output[1, 1, 2, 1]], rtol=1e-6)


@pytest.mark.parametrize("name", ["logit", "probability", "log_probability", "counterfactual"])
def test_target_out_of_range_is_nan(name):
    assert bool(jnp.isnan(getattr(score, name)(LOGITS, jnp.array([3, -1]))).all())


def test_an_array_in_a_score_does_not_compile_again():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(1)
            x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
            return nn.Dense(3)(x.mean((1, 2)))

    traces, images = [], helpers.images()
    model = jaxcam.tap(Counting(), Counting().init(jax.random.key(0), images), "conv")
    first = jaxcam.grad_cam(model, images, score=score.cosine_similarity([1.0, 0.0, 0.5]))
    seen = len(traces)
    second = jaxcam.grad_cam(model, images, score=score.cosine_similarity([0.0, 1.0, -0.5]))
    assert len(traces) == seen
    assert not np.allclose(first, second, atol=1e-2)


def test_segmentation_model():
    """A heatmap for one class at one pixel is that pixel's receptive field."""

    class Segmenter(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), name="features")(x))
            return nn.Conv(3, (1, 1))(x)

    images = helpers.images(2)
    model = jaxcam.tap(Segmenter(), Segmenter().init(jax.random.key(0), images), "features")
    mask = jnp.zeros((12, 16)).at[5, 6].set(1)
    attributions = jaxcam.saliency(model, images, 1, score=score.pixels(mask))
    inside = np.zeros((12, 16), bool)
    inside[4:7, 5:8] = True
    assert float(jnp.abs(attributions[:, inside]).max()) > 0
    np.testing.assert_array_equal(attributions[:, ~inside], 0)
    assert jaxcam.grad_cam(model, images, 2, score=score.pixels()).shape == (2, 12, 16)


def test_margin_is_against_the_best_other():
    np.testing.assert_allclose(score.margin(LOGITS, TARGETS), [2, -4])


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_single_number_is_a_class_against_another(shape):
    """As pytorch-grad-cam's `BinaryClassifierOutputTarget`: 1 is the number, 0 its negative."""
    output, targets = jnp.array([0.5, -2.0]).reshape(shape), jnp.array([1, 0])
    sigmoid = 1 / (1 + np.exp([-0.5, 2.0]))
    np.testing.assert_allclose(score.logit(output, targets), [0.5, 2.0])
    np.testing.assert_allclose(score.probability(output, targets), [sigmoid[0], 1 - sigmoid[1]], rtol=1e-6)
    np.testing.assert_allclose(score.log_probability(output, targets), np.log([sigmoid[0], 1 - sigmoid[1]]), rtol=1e-5)
    assert bool(jnp.isnan(score.logit(output, jnp.array([2, -1]))).all())


def test_what_a_score_carries_may_have_a_row_for_each_image():
    np.testing.assert_allclose(score.contrast(jnp.array([0, 2]))(LOGITS, TARGETS), [3, -4])
    directions = jnp.array([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])
    np.testing.assert_allclose(score.concept(directions)(LOGITS, None), [2, 12 / 5])
    np.testing.assert_allclose(score.concept(directions[1])(LOGITS, None), [19 / 5, 12 / 5])
    similar = score.cosine_similarity(score.Rows(directions))(LOGITS, None)
    np.testing.assert_allclose(similar, [2 / 21**0.5, 12 / 5 / 10**0.5], rtol=1e-6)
    both = score.cosine_similarity(directions)(LOGITS, None)  # several for all images: their mean
    each = [score.cosine_similarity(one)(LOGITS, None) for one in directions]
    np.testing.assert_allclose(both, np.mean(each, 0), rtol=1e-6)


def test_concept_averages_maps_over_their_cells():
    maps = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    found = score.concept(jnp.array([1.0, 0, 0]))(maps, None)
    np.testing.assert_allclose(found, maps[..., 0].mean((1, 2)), rtol=1e-5)


def test_neuron_is_a_place_or_a_channel():
    maps = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    np.testing.assert_array_equal(score.neuron(1, 2, 0)(maps, None), maps[:, 1, 2, 0])
    np.testing.assert_allclose(score.neuron(..., 2)(maps, None), maps[..., 2].sum((1, 2)), rtol=1e-5)
    assert hash(score.neuron(1).func) == hash(score.neuron(1).func) and score.neuron(1).func == score.neuron(1).func


def test_box_is_drise():
    """IoU times class probability times objectness, of the best box."""
    boxes = jnp.array([[[0.0, 0, 4, 4], [2, 2, 6, 6]], [[0, 0, 1, 1], [5, 5, 9, 9]]])
    probabilities = jnp.array([[[0.1, 0.9], [0.7, 0.3]], [[0.5, 0.5], [0.2, 0.8]]])
    objectness = jnp.array([[0.5, 1.0], [1.0, 0.25]])
    box = jnp.array([2.0, 2, 6, 4])  # IoU 4/20 and 8/16 in the first image, 0 and 0 in the second
    found = score.box(box, 1)((boxes, probabilities, objectness), jnp.array([0, 0]))
    np.testing.assert_allclose(found, [max(0.2 * 0.9 * 0.5, 0.5 * 0.3), 0], rtol=1e-6)
    of_targets = score.box(box)((boxes, probabilities, objectness), jnp.array([0, 1]))
    np.testing.assert_allclose(of_targets[0], 0.5 * 0.7, rtol=1e-6)
    rows = jnp.stack([box, jnp.array([5.0, 5, 9, 9])])
    output = {"boxes": boxes, "probabilities": probabilities}
    np.testing.assert_allclose(score.box(rows, 1)(output, TARGETS), [0.2 * 0.9, 0.8], rtol=1e-6)


def test_box_compares_the_probabilities_of_a_detection():
    """D-RISE's similarity of two detections, one box at a time in NumPy; of the detection itself, its objectness."""
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 8, (2, 5, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(1, 8, (2, 5, 2))], -1).astype(np.float32)
    probabilities, objectness = rng.dirichlet(np.ones(3), (2, 5)), rng.uniform(0.2, 1, (2, 5))
    output = tuple(jnp.asarray(each, jnp.float32) for each in (boxes, probabilities, objectness))

    def likeness(i, box, own):
        values = []
        for other, theirs, sure in zip(boxes[i], probabilities[i], objectness[i], strict=True):
            sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
            common, areas = np.prod(np.maximum(sides, 0)), [np.prod(b[2:] - b[:2]) for b in (box, other)]
            cosine = own @ theirs / np.linalg.norm(own) / np.linalg.norm(theirs)
            values.append(common / (sum(areas) - common) * cosine * sure)
        return max(values)

    for each in range(5):
        found = score.box(boxes[:, each], probabilities[:, each])(output, jnp.zeros(2, jnp.int32))
        expected = [likeness(i, boxes[i, each], probabilities[i, each]) for i in range(2)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert (np.asarray(found) >= objectness[:, each] * (1 - 1e-5)).all()
    shared = score.box(boxes[0, 0], probabilities[0, 0])(output, jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(shared[0], likeness(0, boxes[0, 0], probabilities[0, 0]), rtol=1e-5)


ROWS = [  # a score with a row for each image, and the output that it reads
    (score.contrast(jnp.array([0, 1, 3])), lambda logits: logits),
    (score.concept(jax.random.normal(jax.random.key(1), (3, 4))), lambda logits: logits),
    (score.cosine_similarity(score.Rows(jax.random.normal(jax.random.key(2), (3, 2, 4)))), lambda logits: logits),
]


@pytest.mark.parametrize(("carried", "read"), ROWS, ids=["contrast", "concept", "cosine_similarity"])
@pytest.mark.parametrize(
    "method", [jaxcam.grad_cam, partial(jaxcam.score_cam, chunk_size=5), partial(jaxcam.rise, num_samples=8)]
)
def test_rows_follow_the_images_into_every_chunk(method, carried, read):
    """The map of an image in the batch is that of the image alone, with its own row."""
    model, images, targets = helpers.small(), helpers.images(), jnp.array([2, 0, 1])
    together = method(model, images, targets, score=carried)
    for index in range(3):
        own = jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], carried)
        alone = method(model, images[index : index + 1], targets[index : index + 1], score=own)
        np.testing.assert_allclose(together[index], alone[0], atol=5e-5)


def test_errors(as_user):
    with pytest.raises(ValueError, match="an array float32 \\(2, 3, 4, 5\\) where this score expects"):
        score.logit(jnp.zeros((2, 3, 4, 5)), TARGETS)
    with pytest.raises(ValueError, match="a dict with the keys 'a' where this score expects logits"):
        score.logit({"a": LOGITS}, TARGETS)
    with pytest.raises(ValueError, match="other has shape \\(1, 2\\); it must have 0 axes"):
        score.contrast(jnp.array([[1, 2]]))
    with pytest.raises(ValueError, match="embedding has shape \\(1, 2, 3\\)|embedding has shape"):
        score.cosine_similarity(jnp.zeros((1, 2, 3, 4)))
    with pytest.raises(ValueError, match="mask of score.pixels is for \\(3, 4\\) pixels"):
        score.pixels(jnp.ones((3, 4)))(jnp.zeros((2, 4, 4, 3)), TARGETS)
    with pytest.raises(ValueError, match="score.pixels expects"):
        score.pixels()(LOGITS, TARGETS)
    with pytest.raises(ValueError, match="a tuple of 2 where score.box expects"):
        score.box(jnp.zeros(4))((LOGITS, LOGITS), TARGETS)


@pytest.mark.parametrize(
    ("given", "said"),
    [(lambda o, t: 1.0, "a float"), (lambda o, t: None, "None"), (lambda o, t: o, r"an array float32 \(3, 4\)")],
)
def test_a_score_must_return_a_number_for_each_image(given, said):
    with pytest.raises(ValueError, match=f"The score returned {said}; it must return one floating-point"):
        jaxcam.saliency(helpers.small(), helpers.images(), 1, score=given)
