"""Writes `docs/agreement.md`: how far jaxcam's numbers are from those of the libraries that the tests compare with.

    python -m tests.golden.agreement               # some minutes

It runs the tests that read golden files, and listens: every comparison is one of a method or metric of the registry
with a library, both of which the test's name, its parameters or the compared line say. The page says the greatest
difference of each pair, as a share of the largest value that the library gives. Its last section is what
`captum_suite` found.
"""

import inspect
import linecache
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.golden.captum_suite import section

ROOT = Path(__file__).parents[2]
FILES = [
    *("golden", "rules", "perturbation", "cam_family", "baselines", "wrappers", "paths", "xrai"),
    *("metrics_quantus", "metrics_faithfulness", "metrics_maps"),
]
# What in a test's name or in a compared line says whose numbers they are.
LIBRARIES = {
    "captum": "Captum 0.9.0",
    "zennit": "zennit 0.5.1",
    "pytorch_grad_cam": "pytorch-grad-cam 1.5.7",
    "pic/": "PAIR saliency",
    "gradcam/": "pytorch-grad-cam 1.5.7",
    "torch_cam": "torch-cam 0.5.0",
    "torchcam": "torch-cam 0.5.0",
    "quantus": "Quantus 0.6.0",
    "authors": "PAIR saliency",
    "PAIR": "PAIR saliency",
    "scikit_learn": "scikit-learn",
    "scipy": "SciPy",
    "skimage": "scikit-image",
}
BY_CAPTUM = ("saliency", "integrated_gradients", "input_x_gradient")  # of the ResNets; the rest is pytorch-grad-cam
ALSO = {"deep_lift_shap": "deep_lift", "gradient_shap": "expected_gradients"}  # cases by another name
NOTES = {
    "deep_lift": "Captum's sums miss the difference where pooling windows overlap; ours add up.",
    "eigen_cam": "The sign of a singular vector is chance there; ours is fixed.",
    "eigen_grad_cam": "The sign of a singular vector is chance there; ours is fixed.",
    "guided_backprop": "pytorch-grad-cam explains the first image of a batch alone.",
    "kernel_shap": "Captum adds a ridge; ours is the Shapley value itself where all sets are taken.",
    "kpca_cam": "The sign of a component is chance there; ours is fixed.",
    "lrp": "Captum's gamma rule looks at weights alone: it agrees for positive inputs without a bias.",
    "saliency": "Captum gives the absolute value by default, ours is signed.",
    "xrai": 'With the same segments, `channels="max"` and `min_pixels=50`.',
}


def registries() -> dict:
    import jaxcam  # after pytest, which instruments it

    return {"Methods": jaxcam.METHODS, "Metrics": jaxcam.metrics.METRICS}


class Listener:
    """Records every comparison of a test of the registry with a library."""

    def __init__(self):
        self.found = defaultdict(list)
        self.item = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.item = item
        try:
            return (yield)
        finally:
            self.item = None

    def heard(self, found, expected, frame) -> None:
        line = _statement(frame)
        library = _library(self.item.name, line)
        name = _name(self.item, line, frame)
        if library == "torch":  # of the ResNets
            library = LIBRARIES["captum" if name in BY_CAPTUM else "pytorch_grad_cam"]
        missed = "delta" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)  # by attributions: rounding
        if name is None or library is None or missed:
            return
        found, expected = np.broadcast_arrays(np.asarray(found, float), np.asarray(expected, float))
        scale = np.nanmax(np.abs(expected), initial=0)
        if scale:
            self.found[name, library].append(float(np.nanmax(np.abs(found - expected)) / scale))


def _statement(frame) -> str:
    """The compared line, which may be broken over several."""
    lines = [linecache.getline(frame.f_code.co_filename, frame.f_lineno + i) for i in range(3)]
    return " ".join(lines)


def _library(test: str, line: str) -> str | None:
    for text in (line, test):
        for word, library in LIBRARIES.items():
            if word in text:
                return library
    return "torch" if "torch_libraries" in test else None


def _name(item, line, frame) -> str | None:
    """Of the method or metric: what the test is called with, what the line names, or what the loop calls `ours`."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    given = [getattr(value, "func", value) for value in params.values()]
    names = [getattr(value, "__name__", value) for value in given if isinstance(value, str) or callable(value)]
    names += [getattr(params.get("case"), "method", "")]
    rows = getattr(item.module, "ROWS", {}).get(params.get("name"))
    names += list(rows.__code__.co_names) if inspect.isfunction(rows) else []
    names += re.findall(r"\w+", line)
    names += sorted((each for registry in registries().values() for each in registry if each in item.name), key=len)[
        -1:
    ]
    names += [each for each in item.function.__code__.co_names if each in registries()["Methods"]]
    names += [getattr(frame.f_locals.get(each), "__name__", "") for each in ("ours", "metric", "method", "function")]
    for name in names:
        for each in (name, ALSO.get(name, ""), re.sub(r"(/|_(?!cam).*$).*", "", name), name.split("/")[0], name[:3]):
            if any(each in registry for registry in registries().values()):
                return each
    return None


def listened() -> dict:
    listener = Listener()
    compare = {name: getattr(np.testing, name) for name in ("assert_allclose", "assert_array_equal")}

    def listening(function):
        def run(actual, desired, *args, **kwargs):
            function(actual, desired, *args, **kwargs)
            if listener.item is not None:
                frame = inspect.currentframe().f_back
                while frame.f_code.co_name == "close":
                    frame = frame.f_back
                listener.heard(actual, desired, frame)

        return run

    for name, function in compare.items():
        setattr(np.testing, name, listening(function))
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in FILES]
    words = "agree or zennit or captum or quantus or zennit or torch or library or libraries or authors or scikit"
    try:
        code = pytest.main(["-q", "-n", "0", "-k", words, *files], plugins=[listener])
    finally:
        for name, function in compare.items():
            setattr(np.testing, name, function)
    if code:
        raise SystemExit("A comparison failed; the page was left as it is.")
    return listener.found


def page(found: dict) -> str:
    lines = [
        "# Agreement with other libraries",
        "",
        "Written by `python -m tests.golden.agreement` from the golden files of the tests: the same weights and images",
        "and, where numbers are drawn, the same draws. The difference is the greatest one, as a share of the largest",
        "value that the library gives. Where a library departs from the paper, ours follows the paper; what metrics",
        "are called elsewhere, and which conventions differ, is in [metrics.md](metrics.md).",
    ]
    for title, registry in registries().items():
        lines += ["", f"## {title}", "", "| | library | greatest difference | comparisons | |", "|---|---|--:|--:|---|"]
        for name in registry:
            pairs = {library: each for (ours, library), each in sorted(found.items()) if ours == name}
            for library, each in pairs.items():
                lines.append(f"| `{name}` | {library} | {max(each):.0e} | {len(each)} | {NOTES.get(name, '')} |")
        alone = [f"`{name}`" for name in registry if not any(ours == name for ours, _ in found)]
        lines += ["", "Checked by identities and by hand, as no golden file has them: " + ", ".join(alone) + "."]
    return "\n".join([*lines, "", *section()]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "agreement.md").write_text(page(listened()))
