"""What a study says of itself in experiments/README.md, written from its numbers and never by hand.

The page holds two places for each study: its answer, one sentence between `<!-- answer NAME -->` and
`<!-- /answer NAME -->` in the table at the top, and its section, between `<!-- NAME -->` and `<!-- /NAME -->`.

    python -m experiments._report NAME ...

writes them again from the results in `results/NAME`, for studies that have a `COMMAND` and an `answer`.
"""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

from jaxcam import _files

README = Path(__file__).parent / "README.md"
LONGEST_CELL = 25  # words; longer text is no table


def publish(args: argparse.Namespace, name: str, *, answer: str, section: str) -> None:
    """Writes a study's sentence and section into the page, after a full run into `results/NAME` and after no other."""
    if not args.smoke and args.output.resolve() == (README.parents[1] / "results" / name).resolve():
        write_section(f"answer {name}", answer)
        write_section(name, f"\n{section.strip()}\n")


def publish_results(args: argparse.Namespace, name: str) -> None:
    """The same from the files of a study: its `answer` of metrics.json, its `COMMAND`, table.md and its pictures."""
    study = importlib.import_module(f"experiments.{name}")
    found = json.loads((args.output / "metrics.json").read_text())
    table = re.sub(r"^## ", "### ", (args.output / "table.md").read_text(), flags=re.MULTILINE)
    pictures = sorted(path.name for path in args.output.glob("*.png"))
    versions = ", ".join(f"{package} {found['versions'][package]}" for package in ("jax", "flax"))
    lines = [f"`{study.COMMAND}`; {found['device']}; {versions}.\n", table]
    lines += [f"![{name}, {Path(file).stem}](../results/{name}/{file})\n" for file in pictures]
    publish(args, name, answer=study.answer(found), section="\n".join(lines))


def write_section(name: str, text: str, page: Path = README) -> None:
    """Puts `text` in place of what stands between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
      ValueError: the page does not have these two markers once, or a table cell has more than 25 words.
    """
    before = page.read_text()
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = f"{re.escape(first)}.*?{re.escape(last)}"
    count = len(re.findall(pattern, before, re.DOTALL))
    if count != 1:
        raise ValueError(f"{page.name} has {count} places for '{name}', not one: write {first}{last} where it belongs.")
    after = re.sub(pattern, lambda _: f"{first}{text}{last}", before, flags=re.DOTALL)
    if long := next((cell for cell in cells(text) if len(words(cell)) > LONGEST_CELL), None):
        raise ValueError(f"A table cell of '{name}' has {len(words(long))} words, more than {LONGEST_CELL}: '{long}'")
    _files.write(page, after.encode())


def cells(text: str) -> list[str]:
    """Every cell of the Markdown tables; of a text of one line, that is a cell itself, the whole."""
    lines = text.splitlines()
    if len(lines) == 1:
        return lines
    return [cell for line in lines if line.startswith("|") for cell in line.strip("|").split("|")]


def words(cell: str) -> list[str]:
    """The words that a reader sees: of a link its text, and no comments."""
    return re.sub(r"\]\([^)]*\)|<!--.*?-->", " ", cell).split()


if __name__ == "__main__":
    for each in sys.argv[1:]:
        publish_results(argparse.Namespace(smoke=False, output=README.parents[1] / "results" / each), each)
