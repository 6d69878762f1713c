"""The public surface: signatures, docstrings, import layers, and what importing the package does not load."""

import ast
import doctest
import functools
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import jaxcam
from jaxcam import _typing
from jaxcam.attribution import METHODS
from jaxcam.cli.listings import every_method
from jaxcam.metrics import METRICS

PACKAGE = pathlib.Path(jaxcam.__file__).parent

# Lower layers first; a file imports only from layers below its own.
LAYERS = [
    ["_typing", "_errors"],
    ["_array", "_checks", "_files", "_describe", "_progress"],
    ["_engine"],
    ["taps", "image", "_noise", "_scores"],
    ["score", "segments", "lrp_rules"],
    ["attribution", "models"],
    ["metrics", "explain", "export"],
    ["compare"],
    ["data", "train", "plot", "regions", "influence"],
    ["dataset", "_visit"],
    ["app"],
    ["cli"],
]
# Inside a folder, files come in an order too.
INSIDE = {
    "_engine": [
        ["program"],
        ["compiler", "forms"],
        ["convolutions", "memory"],
        ["kept"],
        ["compiled"],
        ["loops", "portable", "steps"],
        ["windows"],
    ],
    "taps": [["tap"], ["linen", "nnx", "keras", "equinox", "functions", "tokens"]],
    "attribution": [
        ["_cam"],
        ["_method"],
        ["cam", "masking", "decomposition", "full_grad", "attention", "gradient", "paths", "guided_paths"],
        ["occlusion", "lrp"],
        ["noise", "wrappers", "xrai", "guided_backprop", "deep_lift", "_masked"],
        ["perturbation", "sensitivity"],
        ["concepts"],
    ],
    "models": [
        ["resnet", "vit", "_pickle", "_download"],
        ["convnext", "efficientnet", "vgg", "_labels"],
        ["densenet"],
        ["_families"],
        ["layouts", "_table"],
        ["_convert"],
        ["_read"],
        ["_find"],
        ["weights"],
    ],
    "dataset": [["sources", "program", "store"], ["read"], ["ranges", "report"], ["ray"], ["run"]],
    "plot": [["_pixels"], ["_layout"], ["panels", "pictures", "charts", "signals"]],
    "metrics": [
        ["_checks"],
        ["_altered", "similarity"],
        [
            "alike",
            "axioms",
            "complexity",
            "faithfulness",
            "fidelity",
            "information",
            "localization",
            "monotonicity",
            "regions",
            "road",
        ],
        ["robustness", "sanity"],
        ["boxes", "coherency", "mosaic", "randomization", "stability"],
    ],
}
EXPORTS_ONLY = {"__init__"}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxcam":
            if node.module == "jaxcam":
                yield from (f"jaxcam.{alias.name}" for alias in node.names)
            elif (PACKAGE.joinpath(*node.module.split(".")[1:])).is_dir():
                below = PACKAGE.joinpath(*node.module.split(".")[1:])
                names = (alias.name for alias in node.names)
                yield from (
                    f"{node.module}.{each}" if (below / f"{each}.py").exists() else node.module for each in names
                )
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jaxcam")


def level(name, layers):
    found = [index for index, layer in enumerate(layers) if name in layer]
    assert found, f"{name} has no place in the layers of this test"
    return found[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] in EXPORTS_ONLY:
        return
    if parts[0] in ("cli", "__main__"):
        return  # the top of everything
    for module in imported_modules(path):
        target = module.split(".")[1:]
        if len(parts) == 2 and target[0] == parts[0]:
            inner = INSIDE[parts[0]]
            assert level(target[1], inner) < level(parts[1], inner), f"{path.name} imports {module}"
        else:
            assert level(target[0], LAYERS) < level(parts[0], LAYERS), f"{path.name} imports {module}"


def test_heavy_libraries_have_one_importer():
    importers = {"matplotlib": set(), "tensorflow_datasets": set(), "torch": set(), "orbax": set()}
    importers |= {"keras": set(), "equinox": set(), "gradio": set()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.split(".")[0] in importers:
                    importers[name.split(".")[0]].add(path.relative_to(PACKAGE).parts[0])
    assert importers == {
        "matplotlib": {"plot"},
        "tensorflow_datasets": {"data.py"},
        "torch": set(),
        "orbax": {"train.py", "models"},
        "keras": {"taps"},
        "gradio": {"app.py"},
        "equinox": set(),  # who has a model of it has imported it
    }


def test_only_taps_models_and_training_know_flax():
    """No other file knows a framework."""
    for path in PACKAGE.rglob("*.py"):
        names = {
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        if any(name.split(".")[0] == "flax" for name in names):
            assert path.relative_to(PACKAGE).parts[0] in ("taps", "models", "train.py")


def test_importing_loads_nothing_heavy():
    """In a fresh process; what Flax itself imports does not count."""
    program = """
import sys
import flax.linen
before = set(sys.modules)
import jaxcam, jaxcam.dataset
heavy = ["torch", "tensorflow", "tensorflow_datasets", "matplotlib", "orbax", "optax", "huggingface_hub", "safetensors"]
heavy += ["gradio", "ray", "grain", "tensorstore", "pyarrow", "zarr", "array_record"]
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} & set(heavy)), "flax.nnx" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] False"


# One meaning, one annotation and one default everywhere; where a default differs there is a reason, given here.
VOCABULARY = {
    "alpha": None,  # of what is taken away in Finer-CAM, and of the Lasso in LIME
    "attention": None,  # how attention rollout finds the weights
    "baseline": ("Baseline", None),
    "baselines": ("Baseline", None),
    "border": ("str", "inside"),
    "cells": None,  # how many along each axis: 7 in RISE, 8 in mu-fidelity, as in their papers
    "channels": ("str", "max"),
    "chunk_size": ("int | None", None),
    "composite": None,
    "code": None,
    "concept": None,  # examples of what TCAV asks about
    "complexity": None,
    "correlation": None,
    "classes": None,  # that Finer-CAM compares with
    "curve": ("bool", False),
    "deviation": ("float | int | None", None),
    "deviations": ("float | int", 2),
    "form": ("str", "relative"),
    "factors": None,  # by which images are multiplied in aug_smooth
    "fraction": None,  # of what is kept, moved, removed or compared: that of each paper
    "fractions": None,
    "fusion": ("str", "mean"),
    "grain": ("float | int", 0.01),
    "interpolation": ("str", "linear"),
    "kernel": ("str", "sigmoid"),
    "kernel_scale": ("float | int | None", None),
    "kernel_width": ("float | int", 0.25),
    "key": ("Key", 0),
    "layers": None,
    "mask_noise": ("float | int", 2.0),
    "max_channels": ("int | None", None),
    "max_distance": ("float | int", 0.02),
    "max_sigma": ("float | int | None", None),
    "method": None,  # an attribution method: saliency inside SmoothGrad, a CAM inside what is around CAMs
    "min_pixels": ("int | None", None),
    "multiply_by_inputs": ("bool", True),
    "negligible": ("float | int", 1e-5),
    "noise": ("float | int", 0.15),
    "normalize": ("bool", False),
    "num_classes": ("int", 3),
    "num_components": ("int", 5),
    "num_iterations": ("int", 100),
    "num_samples": None,  # as many as each estimate needs
    "num_segments": ("int | None", None),
    "num_steps": None,
    "order": ("str", "combined"),
    "penalty": ("float | int", 0.01),
    "perturbation": None,
    "radius": ("float | int", 0.02),
    "randomize": None,
    "random_sets": None,
    "raw": None,  # of those that weigh channels, also "channels"
    "residual": ("float | int", 0.5),
    "return_delta": ("bool", False),
    "score": None,  # the logit in methods, the probability in metrics of the model
    "segments": None,
    "shift": None,
    "similarity": None,
    "stride": ("Sizes", None),
    "threshold": ("float | int", 0.5),
    "token": ("int | None", 0),
    "tolerance": ("int", 0),
    "window": None,
}
DIFFERENT = {
    ("craft", "num_components"),  # of a class, where deep_feature_factorization takes those of an image
    ("insertion", "baseline"),  # the paper inserts into the blurred image
    ("irof", "baseline"),  # the paper takes the mean colour
    ("monotonicity_correlation", "baseline"),  # the paper draws the features
}


def words(annotation) -> str:
    """An annotation as it is written; the aliases of `_typing` by their names."""
    aliases = {value: name for name, value in vars(_typing).items() if name in ("Baseline", "Key", "Sizes")}
    aliases[str | _typing.Baseline] = "Baseline"  # metrics know some by name
    return aliases.get(annotation, getattr(annotation, "__name__", str(annotation)))


@pytest.mark.parametrize("name", [*METHODS, *METRICS])
def test_signatures(name):
    """`method(model, images, targets=None, *, options)`; every option has a default, and one meaning everywhere."""
    function = {**METHODS, **METRICS}[name].function
    parameters = inspect.signature(function).parameters
    if name in METHODS:
        positional = [each.name for each in parameters.values() if each.kind == each.POSITIONAL_OR_KEYWORD]
        assert positional == ["model", "images", "targets"]
        assert parameters["targets"].default is None and "score" in parameters
    for option in (each for each in parameters.values() if each.kind == each.KEYWORD_ONLY):
        assert option.default is not option.empty or option.name in ("concept", "random_sets"), option
        assert option.name in VOCABULARY, f"{option.name} is a new word"
        if VOCABULARY[option.name] is not None and (name, option.name) not in DIFFERENT:
            annotation, default = VOCABULARY[option.name]
            assert (words(option.annotation), option.default) == (annotation, default), option


def test_the_registry_says_what_is_so():
    """What a row claims is what the signature has."""
    for row in every_method().values():
        parameters = inspect.signature(row.function).parameters
        assert row.draws == ("key" in parameters), row.name
        assert row.summary and row.when and row.reference and row.cost and row.family
        assert (
            "chunk_size" in parameters
            or not re.search(r"num_samples|num_steps|\bk\b|\bd\b|windows", row.cost)
            or (
                row.name == "guided_integrated_gradients"  # one gradient after the other
            )
        )


def public_functions():
    modules = [
        "taps",
        "taps.tokens",
        "taps.tap",
        "explain",
        "export",
        "score",
        "segments",
        "regions",
        "influence",
        "image",
        "app",
        "plot.panels",
        "plot.pictures",
        "plot.charts",
        "plot.signals",
        "train",
        "data",
        "models.weights",
        "models.resnet",
        "models.efficientnet",
        "models.vgg",
        "models.densenet",
        "models.layouts",
    ]
    for folder in ("attribution", "metrics"):
        modules += [f"{folder}.{path.stem}" for path in sorted((PACKAGE / folder).glob("[a-z]*.py"))]
    for name in modules:
        module = importlib.import_module(f"jaxcam.{name}")
        for attribute, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and callable(value) and not attribute.startswith("_"):
                yield pytest.param(value, id=f"{name}.{attribute}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_docstrings(function):
    doc = inspect.getdoc(function)
    assert doc and doc.splitlines()[0].endswith((".", ":", ",", "?")), "one line of what it is"
    row = {**METHODS, **METRICS}.get(function.__name__)
    if row is not None and row.function is function:
        assert re.search(r"References?: .+\d{4}", doc), "the paper"
        assert "Example:" in doc and ">>>" in doc
        assert re.search(r"`[^`]*=[^`]*`", doc), "the formula"


def examples():
    """The examples of all docstrings, by the function that they are of."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("cli", "__main__"):
            continue
        name = ".".join(("jaxcam", *(part for part in parts if part != "__init__")))
        module = importlib.import_module(name)
        module = sys.modules[name]
        for test in finder.find(module, name):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """What the examples take for given, with a model that is quick to trace in place of the one that a user loads."""
    classifier = helpers.tiny_classifier()
    images, model = classifier.preprocess(jaxcam.sample()), classifier.tap()
    heatmaps = jaxcam.grad_cam(model, images)
    masks = jnp.zeros((1, 32, 32), bool).at[:, 8:24, 8:24].set(True)
    return {
        "jaxcam": jaxcam, "jax": jax, "jnp": jnp, "np": np, "model": model, "images": images, "heatmaps": heatmaps,
        "others": jaxcam.hires_cam(model, images), "masks": masks, "attributions": jaxcam.saliency(model, images),
        "Image": PIL.Image, "Partial": jax.tree_util.Partial, "partial": functools.partial,
    }  # fmt: skip


@pytest.mark.parametrize("test", list(examples()))
def test_examples_run(test, setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test.globs = {**setting, **{name: value for name, value in test.globs.items() if name not in setting}}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    said = []
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert not result.failed, "".join(said)


def test_no_docstring_refers_to_another():
    """It says what an argument is, where the reader is."""
    for path in PACKAGE.rglob("*.py"):
        text = re.sub(r"\s+", " ", path.read_text())  # a sentence may go on in the next line
        found = re.findall(r"(?:[Aa]rguments|[Rr]esult|[Ee]rrors)[^.]*those of `[^ ]*|: as for `[^ ]*", text)
        assert not found, f"{path.name}: {found}"


def test_everything_exported_exists():
    assert jaxcam.__all__ == sorted(jaxcam.__all__)
    exported = {name for name, value in vars(jaxcam).items() if not name.startswith("_") and name in METHODS}
    assert exported == set(METHODS)  # every method is at the top
    for name in jaxcam.__all__:
        assert getattr(jaxcam, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jaxcam.nothing
    for path in PACKAGE.rglob("*.py"):
        if "\n__all__ = " in path.read_text():
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
            exec(f"from {name} import *", {})
