"""The site. What a page calls Python is run as the page is built; the gallery and the reference come from the registry.

A page is plain Markdown: its ```python blocks are the cells of one notebook, run from top to bottom by myst-nb in a
folder of its own, and a cell that fails fails the build. Pages under `generated/` are written by `_pages.py`.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A second build finds the programs that the first one compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS / "_build" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import _pages  # noqa: E402  (the settings above come first: it imports jaxcam)

project = "jaxcam"
release = importlib.metadata.version("jaxcam-xai")
author = "the jaxcam authors"
copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute", "notebooks/*.ipynb"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables, too
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
add_module_names = False
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them as they are spelled
html_theme = "sphinx_book_theme"
html_title = f"jaxcam {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "navbar_persistent": [],
}

FRONT = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"


def read(app, page, source):
    """A page with Python on it is a notebook."""
    path = app.env.doc2path(page)
    if path.parent == DOCS / "generated" and path.stem != "gallery":
        return
    source[0] = _pages.relinked(source[0], path, path)
    if "```python\n" in source[0]:
        source[0] = FRONT + source[0].replace("```python\n", "```{code-cell} ipython3\n")


def setup(app):
    app.parallel = max(app.parallel, os.cpu_count() or 1)  # a page mostly waits for the compiler, which has one thread
    _pages.write(DOCS / "generated")
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", _pages.docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _pages.signature)
