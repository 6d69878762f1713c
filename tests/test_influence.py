"""Which training images: TracIn by its definition, similarity by hand, both as in Captum, and on eight devices."""

import re
from functools import partial
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cam_family import GOLDEN as MODEL
from test_cam_family import TARGETS, tiny

import jaxcam
from jaxcam.influence import cross_entropy, similar, tracin

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "influence.npz"))
TRAINING = np.random.default_rng(7).normal(size=(16, 3, 12, 16)).astype(np.float32).transpose(0, 2, 3, 1)
LABELS = np.arange(16) % 5
N = 8


def dense(variables, images):
    """A model without layers: four logits from six numbers."""
    return jnp.tanh(images.reshape(len(images), -1) @ variables["w"]["kernel"]) + variables["b"]


def weights(seed):
    kernel, b = jax.random.normal(jax.random.key(seed), (7, 4))[:6], jnp.arange(4.0) / (seed + 1)
    return {"w": {"kernel": kernel}, "b": b, "mean": jnp.ones(())}


MODEL_OF_ONE = jaxcam.tap(dense, weights(0))
CHECKPOINTS, RATES = [weights(0), weights(1)], [0.5, 0.1]
IMAGES, GIVEN = helpers.images(2, 1, 2), (helpers.images(24, 1, 2, seed=3), np.arange(24) % 4)


def brute_force(names, loss=cross_entropy, labels=(1, 3)):
    """All scores `[n, m]`, from the gradient of every image by itself."""

    def gradient(variables, image, label):
        of = jax.grad(lambda variables: loss(dense(variables, image[None]), label[None])[0])(variables)
        return jnp.concatenate([each.ravel() for each in [of["w"]["kernel"], of["b"]][names]])

    total = 0
    for variables, rate in zip(CHECKPOINTS, RATES, strict=True):
        ours = jax.vmap(partial(gradient, variables))(IMAGES, jnp.array(labels))
        total += rate * ours @ jax.vmap(partial(gradient, variables))(GIVEN[0], jnp.array(GIVEN[1])).T
    return np.asarray(total)


def agrees(found, expected):
    """Greatest and least, in order, with their numbers."""
    count = found.proponents.shape[1]
    for numbers, values, sign in (
        (found.proponents, found.proponent_scores, -1),
        (found.opponents, found.opponent_scores, 1),
    ):
        best = np.argsort(sign * expected, 1, kind="stable")[:, :count]
        np.testing.assert_array_equal(numbers, best)
        np.testing.assert_allclose(values, np.take_along_axis(expected, best, 1), rtol=1e-5, atol=1e-5)


def squared(output, targets):
    return jnp.square(output[jnp.arange(len(targets)), targets] - 1)


@pytest.mark.parametrize(
    ("options", "names", "loss"),
    [
        ({}, slice(None), cross_entropy),
        ({"parameters": "w", "chunk_size": 32, "num_images": 3}, slice(0, 1), cross_entropy),
        ({"parameters": lambda name: name == "b", "loss": squared, "num_images": 24}, slice(1, 2), squared),
    ],
)
def test_tracin_is_a_sum_of_dot_products(options, names, loss):
    found = tracin(
        MODEL_OF_ONE, IMAGES, np.array([1, 3]), training=GIVEN, checkpoints=CHECKPOINTS, learning_rates=RATES, **options
    )
    agrees(found, brute_force(names, loss))


def test_batches_of_training_images_are_counted_on():
    """Of several sizes, the first with fewer images than are asked for only together with the next."""
    explain = partial(tracin, MODEL_OF_ONE, IMAGES, checkpoints=CHECKPOINTS, learning_rates=RATES, num_images=6)
    cuts = [slice(0, 4), slice(4, 14), slice(14, 24)]
    found = explain(training=((GIVEN[0][cut], GIVEN[1][cut]) for cut in cuts))
    predicted = np.asarray(dense(weights(0), IMAGES).argmax(1))
    agrees(found, brute_force(slice(None), labels=predicted))
    under_jit = jax.jit(lambda images, training: explain(training=training))(IMAGES, GIVEN)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), under_jit, found)


def test_equal_scores_come_in_order():
    """Eight images and their copies, on eight devices' rows: of two the first one."""
    twice = np.repeat(TRAINING[:4], 4, 0)
    found = similar(tiny("late"), TRAINING[:1], training=twice, num_images=4)
    assert found.proponents.tolist() == [[0, 1, 2, 3]]
    np.testing.assert_allclose(found.proponent_scores, 1, rtol=1e-6)


def test_derivatives_of_ones_own_are_taken_backwards():
    """A model with a `custom_vjp` has no forward derivative, and TracIn needs none."""

    @jax.custom_vjp
    def own(x):
        return jnp.tanh(x)

    own.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, g: (g * (1 - y**2),))

    def model(variables, images):
        return own(images.reshape(len(images), -1) @ variables["w"]["kernel"]) + variables["b"]

    found = tracin(jaxcam.tap(model, weights(0)), IMAGES, 1, training=GIVEN)
    expected = tracin(MODEL_OF_ONE, IMAGES, 1, training=GIVEN)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)


@pytest.mark.parametrize("parameters", [None, "fc"])
def test_captums_tracin(parameters):
    """Of a network with BatchNorm, whose running statistics are no parameters; the second checkpoint is one half."""
    model = tiny("late")
    half = jax.tree.map(lambda each: each * 0.5, model.variables["params"])
    found = tracin(
        model,
        MODEL["images"],
        TARGETS,
        training=(TRAINING, LABELS),
        checkpoints=[model.variables, {**model.variables, "params": half}],
        learning_rates=[0.1, 0.03],
        parameters=parameters,
        num_images=16,
    )
    expected = GOLDEN[f"tracin/{parameters or 'all'}"]
    scores = np.zeros_like(expected)
    np.put_along_axis(scores, np.asarray(found.proponents), np.asarray(found.proponent_scores), 1)
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.abs(expected).max())


def test_captums_similar_images():
    """Its distance is the negative of the score here."""
    for similarity, sign in {"cosine": 1, "euclidean": -1}.items():
        found = similar(tiny("late"), MODEL["images"], training=TRAINING, similarity=similarity, num_images=4)
        np.testing.assert_array_equal(found.proponents, GOLDEN[f"{similarity}/numbers"])
        np.testing.assert_allclose(sign * found.proponent_scores, GOLDEN[f"{similarity}/values"], rtol=1e-4)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", lambda a, b: a[:, :1] * b[:, 0]])
def test_similarities_by_hand(similarity):
    """The layer is the image itself; one of the images is black."""
    same = jaxcam.tap(
        (lambda variables, images: images * variables, lambda variables, features: features), jnp.ones(())
    )
    given = np.asarray(GIVEN[0]).copy()
    given[3] = 0
    a, b = np.asarray(IMAGES).reshape(2, -1), given.reshape(24, -1)
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.maximum(np.linalg.norm(b, axis=1), 1e-9)
    hand = {"dot": a @ b.T, "cosine": a @ b.T / lengths, "euclidean": -np.linalg.norm(a[:, None] - b, axis=-1)}
    expected = hand[similarity] if isinstance(similarity, str) else a[:, :1] * b[:, 0]
    agrees(similar(same, IMAGES, training=given, similarity=similarity, num_images=24, chunk_size=8), expected)


@pytest.mark.parametrize("kind", ["tracin", "similar"])
def test_every_device_goes_through_its_own(kind):
    """An eighth of the work each, and nothing is sent before all have their best."""
    mesh = jax.make_mesh((N,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, same = jax.NamedSharding(mesh, jax.P("n")), jax.NamedSharding(mesh, jax.P())
    model = MODEL_OF_ONE
    if kind == "similar":
        model = jaxcam.tap((lambda w, images: jnp.tanh(images * w), lambda w, features: features), jnp.ones(()))

    def explain(model, images, training, labels):
        options = {"num_images": 3, "chunk_size": 64}
        if kind == "tracin":
            return tracin(model, images, 1, training=(training, labels), **options)
        return similar(model, images, training=training, **options)

    given = model, IMAGES[:1], helpers.images(128, 1, 2, seed=4), jnp.arange(128) % 4
    alone = jax.jit(explain).lower(*given).compile()
    given_spread = jax.device_put(given, (same, same, spread, spread))
    compiled = jax.jit(explain).lower(*given_spread).compile()
    expected = alone(*given)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), compiled(*given_spread), expected)
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    sent = [line for line in compiled.as_text().splitlines() if re.search(rf" ({kinds})(-start)?\(", line)]
    assert sent and not [line for line in sent if "while/body" in line]
    assert max(int(np.prod([int(each) for each in re.findall(r"\d+", re.search(r"\[([\d,]*)\]", line)[1])]))
               for line in sent) <= 2 * N * 3  # fmt: skip
    assert compiled.cost_analysis()["flops"] <= 0.2 * alone.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"training": GIVEN[0]}, TypeError, r"training must be \(images, labels\)"),
        ({"training": (GIVEN[0], None)}, TypeError, r"training must be \(images, labels\)"),
        ({"training": (GIVEN[0], GIVEN[1] + 9)}, ValueError, "Target 9 is out of range"),
        ({"num_images": 25}, ValueError, "num_images is 25, and there are 24 training images"),
        ({"checkpoints": []}, ValueError, "checkpoints is empty"),
        ({"checkpoints": [{"w": jnp.ones(3)}]}, ValueError, "Checkpoint 0 is not like model.variables"),
        ({"learning_rates": [1, 2]}, ValueError, "There are 2 learning rates and 1 checkpoints"),
        ({"parameters": "v"}, ValueError, "Unknown layer with parameters 'v'"),
        ({"parameters": "mean"}, ValueError, "Unknown layer with parameters 'mean'"),
        ({"parameters": lambda name: False}, ValueError, "No parameters are left. Some of the model's: b, w.kernel"),
        ({"loss": 3}, TypeError, "loss is 3; it must be a function"),
        ({"targets": np.ones((2, 2), int)}, ValueError, "takes one label for each image"),
    ],
)
def test_tracin_says_what_is_wrong(options, error, message, as_user):
    with pytest.raises(error, match=message):
        tracin(MODEL_OF_ONE, IMAGES, **{"training": GIVEN, "targets": None, **options})


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (lambda images: images, {}, TypeError, "similar looks inside of the model"),
        (MODEL_OF_ONE, {}, TypeError, "similar needs a layer"),
        (helpers.small(("early", "late")), {}, ValueError, "similar looks at one layer, and 2 are tapped"),
        (helpers.small(), {"similarity": "cosin"}, ValueError, "Unknown similarity 'cosin'. Did you mean 'cosine'"),
        (helpers.small(), {"similarity": lambda a, b: a}, ValueError, r"The similarity returned \(2, 72\)"),
        (jaxcam.tap(dense, weights(0), context=IMAGES), {}, ValueError, "The tap has context"),
    ],
)
def test_similar_says_what_is_wrong(model, options, error, message, as_user):
    with pytest.raises(error, match=message):
        similar(model, TRAINING[:2], training=TRAINING, **options)
