"""The code on the pages runs, and the tables say what the registry says."""

import re
import runpy
import shutil
from pathlib import Path

import helpers
import pytest

import jaxcam

ROOT = Path(__file__).parent.parent
SITE_ONLY = {  # run when the site is built, and not here, where they would take more than three seconds each
    "they train a network": (
        *("vit", "segmentation", "detection", "image-text", "signals-and-volumes"),
        *("training-data", "ensemble", "in-a-loss"),
    ),
    "it asks a network trained on ImageNet": ("tcav-and-craft",),
    "it compares methods through metrics, and counts what compiles": ("choosing-a-method", "concepts"),
    "it compiles each method twice": ("bfloat16",),
    "it shuffles all layers of a trained network under five methods": ("trust",),
    "it makes devices of its own, before anything is computed": ("devices",),
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if "```python" in page.read_text()]
PAGES = [page for page in PAGES if not any(page.stem in pages for pages in SITE_ONLY.values())]
# Only the site runs these: they train networks for a minute, and check what they find in trained ones.
NOTEBOOKS = ROOT / "docs" / "notebooks"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of other libraries, as they are imported
@pytest.mark.filterwarnings("ignore:Heatmap")  # of random weights on a small network
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_runs(page, tmp_path, monkeypatch):
    """All blocks of a page, one after the other, in a folder with the photographs that they name."""
    if "import keras" in page.read_text():
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        for name in ("keras", "equinox", "haiku"):
            pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for name in ("dog.jpg", "car.png"):
        shutil.copy(jaxcam.sample(), tmp_path / name)
    classifier = helpers.tiny_classifier()
    monkeypatch.setattr(jaxcam, "load", lambda name: classifier)  # whatever the page loads
    scope = {}  # as in the site, where a page has nothing that it does not make
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        exec(compile(block, f"{page.name}, block {index + 1}", "exec"), scope)


def test_a_notebook_has_the_cells_of_its_page():
    """What opens in Colab is what the site runs: `python docs/_notebooks.py` writes the one from the other."""
    notebook = runpy.run_path(str(ROOT / "docs" / "_notebooks.py"))["notebook"]
    pages = {page.with_suffix(".ipynb"): page.read_text("utf-8") for page in NOTEBOOKS.glob("*.md")}
    assert set(NOTEBOOKS.glob("*.ipynb")) == set(pages) != set()
    for path, page in pages.items():
        assert path.read_text("utf-8") == notebook(page), f"{path.name} is behind; run python docs/_notebooks.py"


def test_the_page_of_metrics_names_what_there_is():
    """All of them, and in the middle columns of its tables nothing else."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    cells = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")]
    assert {name for cell in cells for name in re.findall(r"`(\w+)[`(]", cell)} <= set(jaxcam.metrics.METRICS)
    assert not [name for name in jaxcam.metrics.METRICS if f"`{name}" not in text]


def test_the_page_of_names_from_pytorch_names_what_there_is():
    """In the middle columns of its tables: methods, metrics, or what else `jaxcam` offers."""
    tables = (ROOT / "docs" / "from-pytorch.md").read_text().partition("## pytorch-grad-cam")[2]
    cells = [line.split(" | ")[1] for line in tables.splitlines() if line.startswith("| ")]
    names = {name for cell in cells for name in re.findall(r"`((?:\w+\.)?\w+)[`(]", cell)}
    assert len(names) > 50
    for name in names:
        place, _, last = name.removeprefix("jaxcam.").replace("tap.", "Tap.").rpartition(".")
        places = [getattr(jaxcam, place)] if place else [jaxcam, jaxcam.metrics]
        assert any(hasattr(each, last) for each in places), f"the page says {name}, which jaxcam does not have"


def test_the_page_says_what_was_found_of_captums_own_tests():
    suite = runpy.run_path(str(ROOT / "tests" / "golden" / "captum_suite.py"))
    page = (ROOT / "docs" / "agreement.md").read_text("utf-8")
    assert page.endswith("\n".join(suite["section"]()) + "\n"), "run python -m tests.golden.agreement"
