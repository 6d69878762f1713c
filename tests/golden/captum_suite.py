"""How many of Captum's own tests hold for jaxcam: they run here, with their numbers from jaxcam.

    python -m tests.golden.captum_suite PATH_TO_A_CLONE_OF_CAPTUM               # 20 minutes on two cores
    python -m tests.golden.captum_suite PATH_TO_A_CLONE_OF_CAPTUM FILE [FILE]   # these files of it alone

It needs torch, scikit-learn and parameterized, and writes `captum_suite.json`, of which `agreement` makes a section.
Nothing of Captum is copied: pytest runs the clone's own tests on the clone's code, in which each `attribute` method is
an adapter (`captum_adapters`). It calls jaxcam on the test's PyTorch model (`torch_as_jax`), and the test's assertions
judge what comes back: they hold (agrees) or not (differs), or the adapter raises `NotExpressible`. Tests that call no
adapter, or look at something else than numbers (`ELSEWHERE`), are not counted.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import wraps
from pathlib import Path

import pytest

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[2] / "docs" / "agreement.md"
TITLE = "## Captum's own tests"
# Thousands of small programs: to compile them fast is all. And matrices of NumPy's are too small for threads.
SETTINGS = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "OPENBLAS_NUM_THREADS": "1",
}
OUTCOMES = ("agrees", "differs", "not expressible")
FOLDERS = ("tests/attr", "tests/metrics")
# Which tests look at something else than a method's numbers, by what their names hold.
ELSEWHERE = {
    "test_llm|test_data|test_jit|test_class_summ|test_summarizer|test_stat|test_interpretable|test_hook": "other tools",
    "[Ff]uture": "futures",
    "show_progress": "the text of a progress bar",
    "error|wrong_usage|improper|too_large|creator|repeated_module|reusable_module|missing|min_examples": "errors",
}
# Why numbers differ, by what a test's name holds: each was looked into.
WHY = {
    "basic_multi.*wo_mut|multivariable_vanilla_wo": "our deltas do not depend on `multiply_by_inputs`",
    "integrated_gradients_basic|tanh_deeplift": "two float32 sums that are asserted to be equal bit by bit",
    "test_lrp_multi$": "two float32 sums that are asserted to be equal bit by bit",
    "deeplift_classification": "float32: classes differ by a bias beside logits of millions",
    "lrp_multi_inputs": "Captum gives each summand of `x + y` all of the relevance (its delta is -104), ours a share",
    "internal_influence": "a bound on the error of a quadrature, here Gauss-Legendre whatever is asked for",
    "gradient_shap|sparse_features|multi_input_batch_lime": "few draws: it holds for those of Captum's seed",
}
FAMILIES = {
    "/neuron/": "neurons",
    "/layer/": "layers",
    "/metrics/": "metrics",
    "test_targets": "all methods, a target for each input",
    "integrated|gradient_shap": "integrated gradients, gradient SHAP",
    "deeplift": "DeepLIFT",
    "lrp": "LRP",
    "lime|kernel_shap|shapley": "LIME, Shapley values",
    "ablation|occlusion|permutation": "ablation, occlusion, permutation",
    "": "gradients, guided backprop, Grad-CAM",
}


def first(table: dict, test: str, default: str = "") -> str:
    """What the table says of the first pattern that the test's name holds."""
    return next((value for pattern, value in table.items() if re.search(pattern, test)), default)


class Plugin:
    """Chooses the tests, and notes which adapters each called and how it ended."""

    def __init__(self):
        self.calls, self.found = [], {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if not first(ELSEWHERE, item.nodeid)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "setup":
            self.calls.clear()
        if call.when == "call" and self.calls and not report.skipped:
            self.found[item.nodeid] = self.outcome(item.nodeid, call.excinfo and call.excinfo.value)
            if len(self.found) % 40 == 0:
                sys.modules["jax"].clear_caches()
        return report

    def outcome(self, test, error) -> dict:
        if error is None:
            return {"outcome": "agrees"}
        if type(error).__name__ == "NotExpressible":
            return {"outcome": "not expressible", "reason": str(error)}
        said = f"{type(error).__name__}: {error}".split("\n")[0]
        return {"outcome": "differs", "reason": first(WHY, test, f"not looked into: {said}")}


def noted(function, calls: list, adapter=None):
    """`adapter`, or the function itself, which notes that it was called."""

    @wraps(inspect.unwrap(function))
    def run_here(*args, **kwargs):
        calls.append(function.__name__)
        if adapter is None:
            return function(*args, **kwargs)
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
        attributor, *_ = bound.values()
        given = {name: each for name, each in bound.items() if name not in ("self", "kwargs")}
        return adapter(attributor, **given, **bound.get("kwargs", {}))

    return run_here


def suite(clone: Path, files) -> dict:
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    sys.path.insert(0, str(clone))
    import captum.attr
    import captum.metrics

    from tests.golden import captum_adapters as adapters
    from tests.golden.captum_calls import ORIGINAL

    plugin = Plugin()
    for name in captum.attr.__all__:
        kind = getattr(captum.attr, name)
        if inspect.isclass(kind) and "attribute" in vars(kind) and not re.search("LLM|DataLoader", name):
            ORIGINAL[name] = kind.attribute
            kind.attribute = noted(kind.attribute, plugin.calls, adapters.ADAPTERS.get(name, adapters.attribute))
    for function in (adapters.infidelity, adapters.sensitivity_max):
        setattr(captum.metrics, function.__name__, noted(function, plugin.calls))
    options = ["-q", "--import-mode=importlib", "-c", "/dev/null", f"--rootdir={clone}", "--tb=short"]
    options += ["-p", "no:cacheprovider", "-p", "no:warnings", "--ignore-glob=*data_parallel*"]
    files = [each if each.startswith("-") else str(clone / each) for each in files]
    pytest.main([*options, *files], plugins=[plugin])
    return plugin.found


def section() -> list[str]:
    """Lines of a page: how many tests of each family, and why not all agree."""
    results = json.loads(RESULTS.read_text())
    tests = {test: (each["outcome"], each.get("reason", "")) for test, each in results["tests"].items()}
    counts = Counter((first(FAMILIES, test), outcome) for test, (outcome, _) in tests.items())
    total = Counter(outcome for outcome, _ in tests.values())
    lines = [
        TITLE,
        "",
        "`python -m tests.golden.captum_suite` runs those tests of Captum that look at numbers, with the numbers of",
        "jaxcam on the same PyTorch models; their own assertions say whether they agree. Of Captum it is commit",
        f"`{results['captum'][:10]}`, code and tests.",
        "",
        "| tests of | agree | differ | not expressible |",
        "|---|--:|--:|--:|",
    ]
    rows = {name: [counts[name, outcome] for outcome in OUTCOMES] for name in FAMILIES.values()}
    rows["together"] = [total[outcome] for outcome in OUTCOMES]
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in rows.items() if any(row)]
    lines += ["", "| | tests | why |", "|---|--:|---|"]
    reasons = Counter(each for each in tests.values() if each[0] != "agrees").most_common()
    return lines + [f"| {outcome} | {count} | {reason} |" for (outcome, reason), count in sorted(reasons)]


if __name__ == "__main__":
    clone, *files = sys.argv[1:]
    found = suite(Path(clone).resolve(), files or FOLDERS)
    print(Counter(each["outcome"] for each in found.values()))
    commit = subprocess.run(
        ["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    before = json.loads(RESULTS.read_text())["tests"] if files and RESULTS.exists() else {}
    results = {"captum": commit.strip(), "tests": dict(sorted((before | found).items()))}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text("\n".join([PAGE.read_text().split(TITLE)[0].rstrip(), "", *section(), ""]))
