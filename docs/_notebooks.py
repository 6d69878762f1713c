"""The `.ipynb` of each page in `notebooks/`: `python docs/_notebooks.py` writes them anew, and a test compares.

The Markdown is what is edited, and what the site runs; the `.ipynb` has the same cells, without outputs, for Colab and
Jupyter. A cell that only they need, such as the installation, has the tags `remove-cell` and `skip-execution`.
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "notebooks"
CODE = re.compile(
    r"^```(?:python|\{code-cell\}[^\n]*)\n(?::tags: \[([^\n]*)\]\n)?(.*?)\n```$", re.DOTALL | re.MULTILINE
)
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def notebook(page: str) -> str:
    """A page as the JSON of a notebook: its blocks of Python, and the Markdown between them."""
    cells, parts = [], CODE.split(page)
    for text, tags, code in zip(parts[::3], [*parts[1::3], None], [*parts[2::3], None], strict=True):
        cells.append({"cell_type": "markdown", "metadata": {}, "source": lines(text.strip())})
        if code is not None:
            metadata = {"tags": tags.split(", ")} if tags else {}
            cells.append({"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": []})
            cells[-1]["source"] = lines(code)
    cells = [cell for cell in cells if cell["source"]]
    return json.dumps({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 4}, indent=1) + "\n"


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    for page in FOLDER.glob("*.md"):
        page.with_suffix(".ipynb").write_text(notebook(page.read_text("utf-8")), "utf-8")
