"""The public surface: signatures, docstrings, import layers, and what importing the package does not load."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam.attribution import FOR_TRANSFORMERS, METHODS
from jaxcam.metrics import METRICS

pytestmark = pytest.mark.optimized

PACKAGE = pathlib.Path(jaxcam.__file__).parent

# Lower layers first; a file imports only from layers below its own.
LAYERS = [
    ["_typing", "_errors", "_array"],
    ["tap", "image", "score"],
    ["_rewrite"],
    ["_convolutions"],
    ["_inputs", "_loops"],
    ["_windows"],
    ["_cam", "_gradient", "segments"],
    ["attribution", "models"],
    ["metrics", "_explain"],
    ["data", "train", "plot"],
    ["cli"],
]
# Inside a folder, files come in an order too.
INSIDE = {
    "attribution": [
        ["cam", "decomposition", "every_layer", "gradient", "masking", "paths", "perturbation", "regions"],
        ["relevance", "rules", "noise"],
    ],
    "models": [["resnet", "_pickle", "_download"], ["_labels"], ["_read"], ["weights"]],
    "plot": [["_pixels"], ["_layout"], ["pictures", "charts"]],
    "metrics": [
        ["_checks"],
        ["_altered", "similarity"],
        ["complexity", "faithfulness", "fidelity", "localization", "road", "sanity"],
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
    if parts == ("cli",):
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
        "orbax": {"train.py"},
    }


def test_importing_loads_nothing_heavy():
    """In a fresh process; what Flax itself imports does not count."""
    program = """
import sys
import flax.linen, flax.nnx
before = set(sys.modules)
import jaxcam
heavy = ("torch", "tensorflow", "tensorflow_datasets", "matplotlib", "orbax", "optax", "huggingface_hub", "safetensors")
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} & set(heavy)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", METHODS)
def test_signatures(name):
    """`method(model, images, targets=None, *, options)`, and every option has a default."""
    parameters = inspect.signature(METHODS[name]).parameters
    positional = [each.name for each in parameters.values() if each.kind == each.POSITIONAL_OR_KEYWORD]
    assert positional == ["model", "images", "targets"]
    assert parameters["targets"].default is None
    options = [each for each in parameters.values() if each.kind == each.KEYWORD_ONLY]
    assert {"score"} <= {each.name for each in options}
    assert all(each.default is not each.empty for each in options)
    vocabulary = {"score", "raw", "chunk_size", "baseline", "num_steps", "num_samples", "key", "method", "noise"}
    vocabulary |= {"segments", "num_segments", "num_classes", "window", "stride", "top_k", "token", "kernel", "gamma"}
    vocabulary |= {"alpha", "cells", "deviations", "epsilon", "fraction", "keep", "kernel_width", "max_distance"}
    vocabulary |= {"max_sigma", "rule"}
    assert {each.name for each in options} <= vocabulary


def public_functions():
    modules = [
        "tap",
        "_explain",
        "score",
        "segments",
        "image",
        "plot.pictures",
        "plot.charts",
        "train",
        "data",
        "models.weights",
        "models.resnet",
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
    if {**METHODS, **METRICS}.get(function.__name__) is function:
        assert re.search(r"References?: .+\d{4}", doc), "the paper"
        assert "Example:" in doc and ">>>" in doc
        assert re.search(r"`[^`]*=[^`]*`", doc), "the formula"


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FOR_TRANSFORMERS])
def test_examples_run(name):
    """The examples in the docstrings, in the setting that the first of them makes."""
    classifier = jaxcam.load("resnet18_cifar10")
    images = classifier.preprocess(jaxcam.sample())
    model = jaxcam.tap(classifier.module, classifier.variables, "layer4")
    scope = {"jaxcam": jaxcam, "jax": jax, "jnp": jnp, "np": np, "model": model, "images": images}
    lines = re.findall(r">>> (.+)", inspect.getdoc(METHODS[name]))
    assert lines
    for line in lines:
        exec(line, scope)
    result = scope.get("heatmaps", scope.get("attributions"))
    assert name == "grad_cam" or result.shape[:3] == (1, 32, 32)


def test_everything_exported_exists():
    assert sorted(jaxcam.__all__, key=str.lower) == sorted(jaxcam.__all__, key=str.lower)
    for name in jaxcam.__all__:
        assert getattr(jaxcam, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jaxcam.nothing
