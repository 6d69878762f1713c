"""jaxcam against the PyTorch libraries, on the same weights and images.

`golden/rebuild.py` lists the cases and rebuilds weights and images; `golden/*.npz` hold what `golden/make_golden.py`
computed once with torchvision, pytorch-grad-cam and Captum. Where those are installed (extra `[torch]`), the same
functions compute the same cases again, and whole maps are compared instead of the stored samples.
"""

import importlib.util
from functools import cache
from itertools import combinations
from pathlib import Path

import jax
import numpy as np
import pytest
from golden import rebuild

import jaxcam
from jaxcam.models.resnet import ARCHITECTURES

FOLDER = Path(__file__).parent / "golden"
CASES = [(architecture, case) for architecture, cases in rebuild.CASES.items() for case in cases]

each_model = pytest.mark.parametrize("architecture", rebuild.CASES)
each_case = pytest.mark.parametrize(("architecture", "case"), CASES, ids=str)


@cache
def stored(architecture) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{architecture}.npz") as file:
        return dict(file)


@cache
def images(architecture) -> dict[str, np.ndarray]:
    seeds = {name: stored(architecture)[f"seeds/{name}"] for name in rebuild.SIZES}
    return {name: rebuild.rebuild_images(*size, seeds[name]) for name, size in rebuild.SIZES.items()}


@cache
def state_dict(architecture) -> dict[str, np.ndarray]:
    statistics = {key: value for key, value in stored(architecture).items() if key.startswith("state/")}
    rebuilt = rebuild.rebuild_state_dict(architecture, rebuild.SEEDS[architecture])
    return rebuilt | {key.removeprefix("state/"): value for key, value in statistics.items()}


def flax_model(architecture):
    return ARCHITECTURES[architecture](), rebuild.flax_variables(state_dict(architecture))


@cache
def our_maps(architecture) -> dict[str, np.ndarray]:
    """All short cases of a model as one program: its parts share their forward passes, so it compiles much faster.

    The long one runs alone and optimised, which takes a sixth of the time.
    """
    module, variables = flax_model(architecture)

    def attribution(case, variables, images):
        model = jaxcam.tap(module, variables, case.layers or "fc")
        targets = np.array(rebuild.TARGETS[case.images]) if case.given else None
        options = dict(case.options)
        if "baseline" in options:
            options["baseline"] = rebuild.baseline(case, images)
        return getattr(jaxcam, case.method)(model, images, targets, **options)

    def attributions(cases):
        def run(variables, images):
            return {str(case): attribution(case, variables, images[case.images]) for case in cases}

        return jax.device_get(jax.jit(run)(variables, images(architecture)))

    cases = rebuild.CASES[architecture]
    long = [case for case in cases if case.method == "integrated_gradients" and not case.options]
    maps = attributions([case for case in cases if case not in long])
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        return maps | attributions(long)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def scale(case, expected):
    """In what a deviation counts: absolute for heatmaps, else relative to the image's largest absolute value."""
    heatmap = case.layers and not case.options.get("raw")
    return 1 if heatmap else np.abs(expected).max(tuple(range(1, expected.ndim)), keepdims=True)


def error(case, found, expected) -> float:
    return np.max(np.abs(found - expected) / scale(case, expected))


def close(case, found, expected) -> None:
    assert found.shape == expected.shape
    unit = scale(case, expected)
    np.testing.assert_allclose(found / unit, expected / unit, rtol=0, atol=case.tolerance)


@each_model
def test_numpy_still_draws_the_weights_of_the_golden_files(architecture):
    np.testing.assert_allclose(
        rebuild.fingerprint(rebuild.rebuild_state_dict(architecture, rebuild.SEEDS[architecture])),
        stored(architecture)["fingerprint"],
        rtol=1e-4,
        err_msg="NumPy's generator changed; make the golden files again: python -m tests.golden.make_golden",
    )


@each_model
def test_logits_and_activations_are_torchvisions(architecture):
    model = jaxcam.tap(*flax_model(architecture), rebuild.LAYERS)
    logits, activations = jax.jit(model.run)(images(architecture)["wide"])
    np.testing.assert_allclose(logits, stored(architecture)["logits/wide"], atol=1e-4)
    for layer, activation in zip(rebuild.LAYERS, activations, strict=True):
        expected = stored(architecture)[f"activations/{layer}"]
        np.testing.assert_allclose(rebuild.summary(activation), expected, atol=1e-4, err_msg=layer)


@each_model
def test_the_golden_files_tell_wrong_from_right(architecture):
    """Agreement means something: classes, maps and methods differ from each other, and no map is flat."""
    for name in ("wide", "small"):
        classes = stored(architecture)[f"logits/{name}"].argmax(1)
        assert len(set(classes)) == len(classes)
        assert not set(classes) & set(rebuild.TARGETS[name])
    for case in rebuild.CASES[architecture]:
        expected = stored(architecture)[f"map/{case}"]
        assert (expected.reshape(len(expected), -1).std(1) > 0.01).all(), case
        assert len(expected) == 1 or error(case, expected, expected[::-1]) > 0.1, case
    layer3 = [case for case in rebuild.CASES[architecture] if case.layers == ("layer3",) and not case.options]
    for one, other in combinations(layer3, 2):
        maps = stored(architecture)
        assert error(one, maps[f"map/{one}"], maps[f"map/{other}"]) > 0.01, (one, other)


@each_case
def test_attributions_are_those_of_the_torch_libraries(architecture, case):
    found = rebuild.sample(case, our_maps(architecture)[str(case)])
    close(case, found, stored(architecture)[f"map/{case}"])


LIBRARIES = ("torch", "torchvision", "pytorch_grad_cam", "captum", "timm")
INSTALLED = all(map(importlib.util.find_spec, LIBRARIES))


def live(test):
    test = pytest.mark.filterwarnings("ignore")(test)  # of these libraries, about each other
    return pytest.mark.skipif(not INSTALLED, reason='needs the PyTorch libraries: pip install -e ".[torch]"')(test)


@cache
def torch_model(architecture):
    from golden import make_golden

    return make_golden, make_golden.reference_model(architecture, state_dict(architecture))


@live
@pytest.mark.parametrize("library", ["torchvision", "timm"])
@each_model
def test_live_logits(architecture, library):
    make_golden, module = torch_model(architecture)
    if library == "timm":
        import timm

        weights = module.state_dict()
        module = timm.create_model(architecture).eval()
        module.load_state_dict(weights)
    found = jaxcam.tap(*flax_model(architecture), "fc")(images(architecture)["medium"])
    np.testing.assert_allclose(found, make_golden.logits(module, images(architecture)["medium"]), atol=1e-4)


@live
@each_case
def test_live_attributions(architecture, case):
    make_golden, module = torch_model(architecture)
    expected = make_golden.reference(module, case, images(architecture)[case.images])
    close(case, our_maps(architecture)[str(case)], expected)
