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
    *("concepts", "influence"),
    *("metrics_quantus", "metrics_faithfulness", "metrics_maps", "authors", "metrics_authors"),
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
    "xplique": "Xplique 2.0.0",
    # The rest by their commit: nobody released them.
    "attention_flow": "Abnar's attention_flow 8044f53",
    "vit_explain": "vit-explain 15a81d3",
    "chefer": "Chefer's Transformer-MM-Explainability 58eaea8",
    "LeGrad": "the authors' LeGrad a9edb03",
    "/RISE": "the authors' RISE d91ea00",
    "/Sobol": "the authors' Sobol-Attribution-Method f4103ed",
    "AIX360": "the authors' AIX360 783f836",
    "wsolevaluation": "the authors' wsolevaluation 96f4b88",
    "/ADCC": "the authors' ADCC e52dadf",
    "/Focus": "the authors' Focus-Metric 900efc4",
}
BY_CAPTUM = ("saliency", "integrated_gradients", "input_x_gradient")  # of the ResNets; the rest is pytorch-grad-cam
ALSO = {"deep_lift_shap": "deep_lift", "gradient_shap": "expected_gradients"}  # cases by another name
NOTES = {
    "attention_rollout": "vit-explain divides columns by the sums of rows, and leaves out nine tenths by default: "
    "steered to rows, and to leave out none.",
    "cascading_randomization": "With the weights that Quantus drew.",
    "completeness": "Captum's convergence delta, without its sign; Quantus asks whether that is zero to the last bit.",
    "deep_feature_factorization": "From the same start: there it is random. After 1,000 rounds ours fits no worse.",
    "deep_lift": "Captum's sums miss the difference where pooling windows overlap; ours add up.",
    "eigen_cam": "The sign of a singular vector is chance there; ours is fixed.",
    "eigen_grad_cam": "The sign of a singular vector is chance there; ours is fixed.",
    "focus": "Of mosaics that are ours.",
    "guided_backprop": "pytorch-grad-cam explains the first image of a batch alone.",
    "hsic": "The kernel's width is the median distance of scores, there the median score: compared where they are one.",
    "independent_randomization": "With the weights that Quantus drew.",
    "input_invariance": "Captum's attributions of both models, correlated by SciPy.",
    "kernel_shap": "Captum adds a ridge; ours is the Shapley value itself where all sets are taken.",
    "kpca_cam": "The sign of a component is chance there; ours is fixed.",
    "label_randomization": "Captum's gradients of both models, correlated by SciPy.",
    "le_grad": "With the mean of the tokens, which the code reads in CLIP.",
    "lrp": "Captum's gamma rule looks at weights alone: it agrees for positive inputs without a bias.",
    "max_box_acc": "The code rounds maps to bytes, and boxes are one pixel longer there.",
    "monotonicity": "Quantus gives one for any map.",
    "mu_fidelity": "Xplique's sets are of any size, and its correlation is Spearman's: steered to one size.",
    "occlusion_correlation": "Captum's occlusion, correlated by SciPy.",
    "random_cam": "With the same weights.",
    "rise": "The sum of the masks takes the place of its expectation, and masks go on at the edge: there they are "
    "mirrored.",
    "saliency": "Captum gives the absolute value by default, ours is signed.",
    "sensitivity_n": "Quantus takes pixels in the map's order and correlates over a batch: compared with Xplique's "
    "mu-fidelity, a mean over sizes.",
    "smooth_mprt": "With the weights that Quantus drew, without noise.",
    "sobol": "The variance is that of both matrices, there of the first.",
    "tcav": "With a classifier of the same penalty, which Captum leaves to its user.",
    "xrai": 'With the same segments, `channels="max"` and `min_pixels=50`.',
}


def registries() -> dict:
    import jaxcam  # after pytest, which instruments it
    from jaxcam.cli.listings import every_method

    return {"Methods": every_method(), "Metrics": jaxcam.metrics.METRICS}


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
    first, last, *_ = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    return " ".join(linecache.getline(frame.f_code.co_filename, line) for line in range(first, last + 1))


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
    names += [getattr(each, "__name__", "") for each in getattr(rows, "args", ())]
    names += re.findall(r"\w+", line)
    names += sorted((each for registry in registries().values() for each in registry if each in item.name), key=len)[
        -1:
    ]
    names += [each for each in item.function.__code__.co_names if each in registries()["Methods"]]
    names += [getattr(frame.f_locals.get(each), "__name__", "") for each in ("ours", "metric", "method", "function")]
    for name in names:
        for each in (name, ALSO.get(name, ""), name.split("/")[0], re.sub(r"(/|_(?!cam).*$).*", "", name), name[:3]):
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
        "are called elsewhere, and which conventions differ, is in [metrics.md](metrics.md). The authors' code is that",
        "of those who coined the method or metric.",
    ]
    for title, registry in registries().items():
        lines += ["", f"## {title}", "", "| | library | greatest difference | comparisons | |", "|---|---|--:|--:|---|"]
        for name in registry:
            pairs = {library: each for (ours, library), each in sorted(found.items()) if ours == name}
            for library, each in pairs.items():
                lines.append(f"| `{name}` | {library} | {max(each):.0e} | {len(each)} | {NOTES.get(name, '')} |")
        alone = [f"`{name}`" for name in registry if not any(ours == name for ours, _ in found)]
        if alone:
            lines += ["", "Checked by identities and by hand, as no golden file has them: " + ", ".join(alone) + "."]
    return "\n".join([*lines, "", *section()]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "agreement.md").write_text(page(listened()))
