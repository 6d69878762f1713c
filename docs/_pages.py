"""The pages that no one writes: the gallery and the reference, from the registry, the signatures and the docstrings.

A new method or metric appears in both by its row. Docstrings are Markdown; autodoc wants reStructuredText, so what
stands in backticks becomes code, or a link where it is the name of something public. Signatures are shown as they are
spelled in the source, with the names of the types, which have a page of their own.
"""

import ast
import inspect
import os
import re
import textwrap
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import jaxcam
from jaxcam import _typing, metrics

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MODULES = ("score", "segments", "lrp_rules", "regions", "influence", "plot", "data", "train", "dataset")
CORE = {
    "Any model": ["tap", "Tap", "tokens", "Tokens", "layers"],
    "Several methods": ["explain", "compare", "Comparison", "heatmap"],
    "Concepts": ["Tcav", "Craft", "craft_maps"],
    "Models with weights": ["load", "Classifier", "image.Preprocess", "sample"],
    "Export": ["export", "exported_weights"],
}


# Pages of the site that are kept beside what they describe.
ELSEWHERE = {
    "engine.md": "jaxcam/_engine/README.md",
    "studies.md": "experiments/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def write(folder: Path) -> None:
    pages = {
        "methods.rst": by_family("Methods", jaxcam.METHODS.values(), "jaxcam"),
        "metrics.rst": by_family("Metrics", metrics.METRICS.values(), "jaxcam.metrics"),
        "core.rst": core(),
        "types.rst": types(),
        **{name: (ROOT / path).read_text() for name, path in ELSEWHERE.items()},
        "gallery.md": gallery(),
        **{f"{name}.rst": module(name) for name in MODULES},
    }
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if name in ELSEWHERE:
            text = relinked(text, ROOT / ELSEWHERE[name], path)
        if not path.exists() or path.read_text() != text:  # what has not changed is not built again
            path.write_text(text)


def relinked(text: str, source: Path, page: Path) -> str:
    """The text of a file as a page of the site: links to files lead to their page, or are downloads where none is."""

    def link(found):
        image, label, target = found.groups()
        place, _, anchor = target.partition("#")
        file = (source.parent / place).resolve()
        if not place or ":" in place or not file.exists():
            return found[0]
        name = next((name for name, path in ELSEWHERE.items() if ROOT / path == file), None)
        file = DOCS / "generated" / name if name else file
        place = os.path.relpath(file, page.parent)
        if image or (file.is_relative_to(DOCS) and file.suffix == ".md"):
            return f"{image}[{label}]({place}{anchor and '#'}{anchor})"
        return label if file.is_dir() else f"[{label}](path:{place})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n"


def by_family(name: str, rows, where: str) -> str:
    lines = [title(name)]
    for family, members in groupby(rows, key=lambda row: row.family):
        lines.append(title(family[0].upper() + family[1:], "-"))
        lines += [f".. autofunction:: {where}.{row.name}\n" for row in members]
    return "\n".join(lines)


def core() -> str:
    lines = [title("Taps, models, several methods")]
    for heading, names in CORE.items():
        lines.append(title(heading, "-"))
        lines += [entry(f"jaxcam.{name}", attrgetter(name)(jaxcam)) for name in names]
    return "\n".join(lines)


def module(name: str) -> str:
    found = getattr(jaxcam, name)
    lines = [title(f"jaxcam.{name}"), f".. automodule:: jaxcam.{name}\n"]
    lines += [entry(f"jaxcam.{name}.{each}", getattr(found, each)) for each in public(found)]
    return "\n".join(lines)


def public(module) -> list[str]:
    """The functions and classes that a module offers."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    own = [name for name in names if getattr(getattr(module, name), "__module__", "").startswith(module.__name__)]
    return [name for name in own if callable(getattr(module, name))]


def entry(path: str, thing) -> str:
    if inspect.isclass(thing):
        described = ", ".join(getattr(thing, "_fields", ()))  # a named tuple's, which its docstring describes
        return f".. autoclass:: {path}\n   :members:\n   :exclude-members: {described}\n"
    return f".. autofunction:: {path}\n"


def types() -> str:
    """What the names in the signatures stand for, as their module spells it, type checkers aside."""
    source = inspect.getsource(_typing)
    lines = [title("Types in the signatures"), inspect.getdoc(_typing) + "\n"]
    for node in (each for part in ast.parse(source).body for each in getattr(part, "orelse", [part])):
        if isinstance(node, ast.Assign):
            lines += [f".. py:type:: {node.targets[0].id}\n", "   .. code-block:: python\n"]
            lines += [f"      {line}" for line in ast.get_source_segment(source, node).splitlines()] + [""]
    return "\n".join(lines)


LINKED = re.compile(r"`(?:jaxcam\.)?((?:metrics\.|score\.|plot\.|segments\.)?\w+)`")


def docstring(app, what, name, thing, options, lines) -> None:
    """Markdown's code as reStructuredText's, with links; examples stay as they are."""
    example = re.compile(r"(^ *>>>.*?(?:\n\s*\n|\Z))", re.DOTALL | re.MULTILINE)
    parts = example.split("\n".join(lines))
    parts[::2] = [re.sub(r"(`[^`]+`)(\w?)", lambda found: code(*found.groups(), name), part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def code(quoted: str, after: str, here: str) -> str:
    name = LINKED.fullmatch(quoted)
    paths = [f"jaxcam.{name[1]}", f"jaxcam.metrics.{name[1]}"] if name else []
    found = next((path for path in paths if is_public(path) and path != here), None)
    role = f":py:obj:`{name[1]} <{found}>`" if found else f"`{quoted}`"
    return role + (after and f"\\ {after}")


def is_public(path: str) -> bool:
    names = path.split(".")[1:]
    thing = jaxcam
    for name in names:
        thing = vars(thing).get(name) if inspect.ismodule(thing) else None
    return inspect.isfunction(thing) or inspect.isclass(thing)


def signature(app, what, name, thing, options, args, returns):
    """As in the source: the names of types, not what they stand for."""
    if hasattr(thing, "_fields"):
        body = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0].body
        return f"({', '.join(ast.unparse(each) for each in body if isinstance(each, ast.AnnAssign))})", None
    function = thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing)
    if what == "class" and not inspect.isfunction(function):
        return None
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(node, ast.FunctionDef):
        return None
    if node.args.args and node.args.args[0].arg == "self":
        del node.args.args[0]
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns and what != "class" else None


# Where the defaults take more passes than a page has time for.
GALLERY_OPTIONS = {
    "score_cam": "max_channels=32",
    "ss_cam": "max_channels=8, num_samples=4",
    "is_cam": "max_channels=8, num_samples=4",
    "smooth_grad": "num_samples=8",
    "smooth_grad_squared": "num_samples=8",
    "var_grad": "num_samples=8",
    "integrated_gradients": "num_steps=16",
    "expected_gradients": "num_samples=16",
    "blur_integrated_gradients": "num_steps=16",
    "guided_integrated_gradients": "num_steps=32",
    "xrai": "num_steps=8",
    "occlusion": "window=64, stride=32",
    "rise": "num_samples=200",
    "lime": "num_samples=100",
    "kernel_shap": "num_samples=100",
    "shapley_sampling": "num_samples=2",
    "sobol": "num_samples=2",
    "hsic": "num_samples=100",
    "deep_feature_factorization": "num_components=3",
}
ON_PAGES = {  # pictures that the gallery's photograph and model cannot give
    "tokens": "It needs a vision transformer: [that page](../vit.md) has its picture.\n",
    "concepts": "It is about a class and not about an image: [that page](../tcav-and-craft.md) has its picture.\n",
}
GALLERY = """# Gallery

Every method on one photograph, half cat and half cup, for the two classes that EfficientNet-Lite0 sees in it. A method
that knows the class moves from one half to the other; one that does not shows the same map twice. Options are small
here, to keep this page quick; the reference says what they do.
[Which method?](../choosing-a-method.md) has numbers.

```python
import numpy as np
import skimage
import jaxcam
from PIL import Image

cat, cup = Image.open(jaxcam.sample()), Image.fromarray(skimage.data.coffee())
photograph = Image.new("RGB", (448, 448))
photograph.paste(cat.crop((130, 0, 280, 300)).resize((224, 448)), (0, 0))
photograph.paste(cup.crop((150, 0, 350, 400)).resize((224, 448)), (224, 0))

classifier = jaxcam.load("efficientnet_lite0")
images = classifier.preprocess(np.asarray(photograph))
model = classifier.tap()
classes = ["Egyptian cat", "espresso"]
targets = np.array([[classifier.labels.index(name) for name in classes]])  # two maps of one image


view = classifier.preprocess.view(np.asarray(photograph))[0]


def show(heatmaps):
    return jaxcam.plot.gallery([[view, *((view, each) for each in heatmaps[0])]], columns=["", *classes], side=2.2)
```
"""


PARTS = """```python
parts, scores = {call}
named = [" · ".join(f"{{name}} {{score:.1f}}" for name, score in zip(classes, each)) for each in scores[0].T]
jaxcam.plot.gallery([[view, *((view, each) for each in parts[0, 0])]], columns=["", *named], side=2.2)
```
"""


def gallery() -> str:
    lines = [GALLERY]
    for family, members in groupby(jaxcam.METHODS.values(), key=lambda row: row.family):
        lines.append(f"## {family[0].upper() + family[1:]}\n")
        for row in members:
            lines += [
                f"### {row.title}\n",
                f"{row.summary[0].upper()}{row.summary[1:]}\n",
                formula(row),
                f"**When.** {row.when}\n",
                facts(row),
            ]
            lines.append(ON_PAGES.get(row.needs) or ON_PAGES.get(row.gives) or cell(row))
    return "\n".join(lines)


def formula(row) -> str:
    """The second paragraph of the docstring."""
    return inspect.getdoc(row.function).split("\n\n")[1] + "\n"


def facts(row) -> str:
    traits = [
        f"Cost in forward passes: {row.cost}",
        "draws random numbers" if row.draws else "",
        "" if row.sees_class else "does not know the class",
        "signed" if row.signed else "",
        f"{{py:func}}`all options <jaxcam.{row.name}>`",
    ]
    return "; ".join(filter(None, traits)) + ".\n"


def cell(row) -> str:
    options = GALLERY_OPTIONS.get(row.name)
    call = f"jaxcam.{row.name}(model, images, targets{options and f', {options}' or ''})"
    if row.gives == "parts":
        return PARTS.format(call=call)
    if row.gives == "attributions":
        call = f"jaxcam.heatmap({call}, images)"
    return f"```python\nshow({call})\n```\n"
