"""Whatever is passed to a row of the registry ends in one sentence, drawn by Hypothesis the same way each time.

What is wrong is found before anything is compiled, so that a hundred mistakes take as long as one explanation.
"""

import inspect
import math
from dataclasses import replace

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jaxcam
from jaxcam.metrics import METRICS

ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
every_method = pytest.mark.parametrize("method", ROWS)
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
GOOD, TARGETS = np.asarray(helpers.images(2)), np.array([1, 2], np.int32)
NAN, INFINITY = math.nan, math.inf


def drawn(examples):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    options = {"derandomize": True, "deadline": None, "database": None, "phases": [Phase.generate]}
    return settings(max_examples=examples, suppress_health_check=quiet, **options)


def said(call) -> str:
    """The sentence in which a call ends."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    sentence = str(caught.value)
    assert type(caught.value) in (ValueError, TypeError) and sentence.isprintable() and sentence.endswith((".", "?"))
    assert len(sentence) < 500
    return sentence


# --- Images ----------------------------------------------------------------------------------------------------------

sides = st.integers(0, 20)


@st.composite
def bad_images(draw):
    """Of another rank, without pixels, of another type, or with a pixel that is no ordinary number."""
    match draw(st.integers(0, 3)):
        case 0:
            shape = st.lists(sides, max_size=2), st.lists(st.integers(1, 3), min_size=6, max_size=9)
            return np.zeros(draw(st.one_of(shape)), np.float32)
        case 1:
            shape = draw(st.lists(st.integers(1, 9), min_size=3, max_size=5))
            shape[draw(st.integers(0, len(shape) - 1))] = 0
            return np.zeros(shape, np.float32)
        case 2:
            return GOOD.astype(draw(st.sampled_from([np.uint8, np.int64, bool, np.complex64, object, "U1"])))
        case _:
            images = GOOD.astype(draw(st.sampled_from([np.float32, np.float64])))
            place = tuple(draw(st.integers(0, side - 1)) for side in images.shape)
            images[place] = draw(st.sampled_from([NAN, INFINITY, -INFINITY, 1e16, -1e30]))
            return images


@every_method
@given(images=bad_images())
@drawn(12)
def test_bad_images(as_user, method, images):
    assert "images" in said(lambda: method.row.function(method.model(), images, None, **method.options))


@pytest.mark.parametrize("method", [row for row in ROWS if row.values[0].name != "xrai"])  # whose segments are arrays
@given(n=st.integers(1, 3), height=st.sampled_from([4, 33, 4000]), width=st.sampled_from([5, 3000]))
@drawn(2)
def test_images_of_any_size_give_maps_of_theirs(method, n, height, width):
    """Traced, not computed."""
    images = jax.ShapeDtypeStruct((n, height, width, 3), jnp.float32)
    model = helpers.small(pooled=True)
    found = jax.eval_shape(lambda model, images: method.function(model, images, 1, **method.options), model, images)
    assert found.shape[:3] == (n, height, width) and found.dtype == jnp.float32


# --- Options ---------------------------------------------------------------------------------------------------------

COUNTS = ["num_steps", "num_samples", "chunk_size", "max_channels", "num_segments", "min_pixels", "num_classes"]
COUNTS += ["num_components", "num_iterations", "window", "stride", "cells"]
AMOUNTS = ["noise", "deviation", "deviations", "mask_noise", "epsilon", "gamma", "alpha", "kernel_width"]
AMOUNTS += ["kernel_scale", "max_sigma"]
NO_COUNT = st.one_of(st.integers(max_value=0), st.floats(), st.sampled_from(["3", True, (0, 1), [], 3.0]))
NO_NUMBER = st.sampled_from([NAN, -INFINITY, "0.1", None, "", (1,), np.float32(NAN), True])
SHARE = st.one_of(NO_NUMBER, st.floats(max_value=-1e-9), st.floats(min_value=1.0001))
WORD = st.one_of(st.text(max_size=30), st.sampled_from(["\x1b[2J", "x" * 999, 3]))
NO_FUNCTION = st.sampled_from([3, "logit", None, GOOD])
NO_BASELINE = st.sampled_from(["black", np.zeros((7, 7)), NAN, -INFINITY, np.full((12, 16, 3), np.nan), {}])
BAD = {
    **dict.fromkeys(COUNTS, NO_COUNT),
    **dict.fromkeys(AMOUNTS, NO_NUMBER),
    **dict.fromkeys(["fraction", "max_distance"], SHARE),
    **dict.fromkeys(["channels", "border", "interpolation", "kernel", "rule", "perturbation"], WORD),
    **dict.fromkeys(["score", "method"], NO_FUNCTION),
    **dict.fromkeys(["baseline", "baselines"], NO_BASELINE),
    "key": st.sampled_from([None, "0", 1.5, True]),
    "segments": st.sampled_from(["quickshift", np.zeros((3, 3), int), 3, np.zeros((12, 16)), np.full((12, 16), -1)]),
}
WITHOUT_SCORE = ("eigen_cam", "kpca_cam", "fem", "random_cam")


def bad_options(function, name):
    """`(option, value)` pairs that cannot be."""
    options = {
        each.name: BAD[each.name].filter(lambda value, each=each: not (value is None and each.default is None))
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.KEYWORD_ONLY and each.name in BAD
        if not (each.name == "score" and name in WITHOUT_SCORE)
    }
    return [st.tuples(st.just(option), values) for option, values in options.items()]


HAS_OPTIONS = [row for row in ROWS if bad_options(row.values[0].row.function, row.values[0].name)]


@pytest.mark.parametrize("method", HAS_OPTIONS)
@given(data=st.data())
@drawn(15)
def test_bad_options(as_user, method, data):
    option, value = data.draw(st.one_of(bad_options(method.row.function, method.name)))
    sentence = said(lambda: method.function(method.model(), GOOD, 1, **{**method.options, option: value}))
    assert option.rstrip("s") in sentence


# --- Metrics ---------------------------------------------------------------------------------------------------------

MAPS = np.asarray(jnp.abs(helpers.images(2, seed=3))[..., 0])
ARGUMENTS = {
    **dict.fromkeys(["a", "b", "heatmaps", "attributions"], MAPS),
    "masks": MAPS > 0.5,
    "images": GOOD,
    "targets": TARGETS,
    "method": jaxcam.saliency,
    "explain": lambda images: jnp.abs(images).sum(-1),
}
NO_MAPS = [np.where(MAPS > 1, each, MAPS) for each in (NAN, INFINITY)]
NO_MAPS += [MAPS[:0], MAPS[0, 0], MAPS.astype(complex), MAPS.astype(str), MAPS.tolist(), None, "map"]
BAD_MAPS = st.sampled_from(NO_MAPS)
BAD_ARGUMENTS = {
    **dict.fromkeys(["a", "b", "heatmaps"], BAD_MAPS),
    "masks": st.sampled_from([MAPS[:1] > 0, MAPS[..., :-1] > 0, np.where(MAPS > 1, NAN, MAPS), None, "mask"]),
    "images": bad_images(),
    "targets": st.sampled_from([4, -1, 1.5, "cat", np.array([0, 9]), np.array([1, 2, 3]), np.array([0.5, 1])]),
    **dict.fromkeys(["method", "explain", "model"], st.sampled_from([3, None, "saliency"])),
}
BAD_METRIC = {
    **BAD,
    **dict.fromkeys(["radius", "threshold", "grain", "tolerance", "negligible"], NO_NUMBER),
    **dict.fromkeys(["similarity", "correlation", "randomize", "complexity", "code"], NO_FUNCTION),
    **dict.fromkeys(["order", "form", "perturbation"], WORD),
    "fractions": st.sampled_from([(), (0.5, NAN), (0, 0.5), (1.5,), ("x",), 3, None]),
    "layers": st.sampled_from([3, "nothing", ("late", "nothing")]),
}
UNREAD = {("infidelity", "window")}  # the usual perturbation has none


@every_metric
@given(data=st.data())
@drawn(15)
def test_bad_arguments_of_metrics(as_user, metric, data):
    parameters = inspect.signature(metric.function).parameters.values()
    model = helpers.small(pooled=True)
    good = {each.name: ARGUMENTS.get(each.name, model) for each in parameters if each.kind is not each.KEYWORD_ONLY}
    bad = [st.tuples(st.just(name), BAD_ARGUMENTS[name]) for name in good if name in BAD_ARGUMENTS]
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and each.name in BAD_METRIC and (metric.name, each.name) not in UNREAD:
            values = BAD_METRIC[each.name].filter(lambda value, each=each: not (value is None and each.default is None))
            bad.append(st.tuples(st.just(each.name), values))
    name, value = data.draw(st.one_of(bad))
    said(lambda: metric.function(**{**good, name: value}))


# --- What chance does not find ----------------------------------------------------------------------------------------

MAPS, MASKS = np.full(GOOD.shape[:-1], 0.5, np.float32), np.ones(GOOD.shape[:-1], bool)


def tiny():
    return helpers.tiny_classifier().tap()


def attention_of(*shapes):
    model = replace(tiny(), reshape=jaxcam.tokens((3, 4)))
    return jaxcam.attention_rollout(model, GOOD, attention=lambda model, images: [np.ones(shape) for shape in shapes])


def one_number():
    """A model of one number for each image."""
    return jaxcam.tap((lambda weight, x: x * weight, lambda weight, a: a.mean((1, 2, 3))), np.ones(3, np.float32))


RARE = {
    "is a share of the largest distance": lambda: jaxcam.metrics.sufficiency(tiny(), GOOD, MAPS, threshold=2),
    "must be above 0 and at most 1": lambda: jaxcam.metrics.max_box_acc(MAPS, MASKS, threshold=0),
    "negligible is -1": lambda: jaxcam.metrics.non_sensitivity(tiny(), GOOD, MAPS, negligible=-1),
    "which does not fit images": lambda: jaxcam.metrics.completeness(tiny(), GOOD, GOOD[:1], 1),
    "at most three axes of space": lambda: jaxcam.metrics.energy_pointing_game(
        np.ones((1,) * 5), np.ones((1,) * 5, bool)
    ),
    "does not weigh channels": lambda: jaxcam.eigen_cam(tiny(), GOOD, raw="channels"),
    "alpha is -1": lambda: jaxcam.lime(tiny(), GOOD, 1, alpha=-1.0),
    "one for each image": lambda: jaxcam.influence.tracin(tiny(), GOOD, training=(GOOD, np.ones((2, 2), int))),
    "which gives no layers": lambda: attention_of(),
    "weights are [n, heads, queries, keys]": lambda: attention_of((2, 3)),
    "follows one token sequence": lambda: attention_of((2, 1, 3, 3), (2, 1, 4, 4)),
    "finer_cam compares classes": lambda: jaxcam.finer_cam(one_number(), GOOD),
    "at least one curve": lambda: jaxcam.plot.curves({}),
    "at least one point for each chart": lambda: jaxcam.plot.scatter({}),
}


@pytest.mark.parametrize("words", RARE)
def test_rare_mistakes(as_user, words):
    assert words in said(RARE[words])
