"""The layouts in which weights are stored: what each tensor of a module is called in a file, and how it lies there.

A layout is one function from the path of a module's part to its name in the file. It is read forwards to save and
backwards to load: the module says which variables there are, so no second table is needed. Kernels `[..., in, out]`
lie as `[out, in, ...]` in all of them; that of a depthwise convolution, `[k, k, 1, c]`, so becomes `[c, 1, k, k]`.

Whoever adds a layout writes such a function here, and names it in its family's row in `_families.py`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]  # of a variable: `("params", "layer1", "0", "conv1", "kernel")`
LEAVES = {  # Flax's collection and leaf, and the same in PyTorch
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


@dataclass(frozen=True, eq=False)
class Layout:
    """One way to name a module's tensors.

    Attributes:
      name: whose names they are.
      rename: `(path, paths) -> name` of a part that has variables, `"stem.conv"`, where `paths` are those of all such
        parts, for names that depend on how many there are. A path that it does not know is a `KeyError`.
      leaves: what Flax's collection and leaf are called.

    Example:
      >>> TORCHVISION.state_dict({"params": {"fc": {"kernel": np.zeros((512, 10))}}})["fc.weight"].shape
      (10, 512)
    """

    name: str
    rename: Callable[[str, tuple[str, ...]], str]
    leaves: Mapping[tuple[str, str], str] = field(default_factory=lambda: LEAVES)

    def names(self, variables: Iterable[Path]) -> dict[Path, str]:
        """The name in the file of each variable.

        Raises:
          ValueError: a variable has no counterpart in this layout.

        Example:
          >>> list(TORCHVISION.names([("params", "layer1", "0", "conv1", "kernel")]).values())
          ['layer1.0.conv1.weight']
        """
        parts = {path: ".".join(path[1:-1]) for path in variables}
        everything = tuple(parts.values())
        names = {}
        for path, part in parts.items():
            try:
                words = self.rename(part, everything), self.leaves[path[0], path[-1]]
            except KeyError:
                raise ValueError(f"The variable {'/'.join(path)} has no counterpart in {self.name}'s names.") from None
            names[path] = ".".join(filter(None, words))
        return names

    def state_dict(self, variables: Mapping) -> dict[str, np.ndarray]:
        """Flax variables under this layout's names, as they lie in its files.

        Raises:
          ValueError: a variable has no counterpart in this layout.

        Example:
          >>> list(TORCHVISION.state_dict({"params": {"bn1": {"scale": np.ones(4), "bias": np.zeros(4)}}}))
          ['bn1.weight', 'bn1.bias']
        """
        flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
        return {
            name: np.moveaxis(flat[path], (-1, -2), (0, 1)) if path[-1] == "kernel" else flat[path]
            for path, name in self.names(flat).items()
        }

    def variables(self, tensors: Mapping[str, Any], template: Mapping) -> dict:
        """The inverse of `state_dict`: the tensors as variables that are named as those of the template.

        Raises:
          ValueError: a variable has no counterpart in this layout.

        Example:
          >>> template = {"params": {"fc": {"kernel": np.zeros((512, 10))}}}
          >>> TORCHVISION.variables({"fc.weight": np.ones((10, 512))}, template)["params"]["fc"]["kernel"].shape
          (512, 10)
        """
        flat = {
            path: np.moveaxis(tensors[name], (0, 1), (-1, -2)) if path[-1] == "kernel" else tensors[name]
            for path, name in self.names(flatten_dict(template)).items()
        }
        return unflatten_dict(flat)


def closest(layouts: Collection[Layout], tensors: Collection[str], template: Mapping) -> Layout:
    """The layout in which most of the file's names are those of the template's variables; the first, if none is.

    Example:
      >>> template = {"params": {"fc": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}}}
      >>> closest((PLAIN, EFFICIENTNET_PYTORCH), ["_fc.weight", "_fc.bias"], template).name
      'efficientnet_pytorch'
    """
    paths = list(flatten_dict(template))
    return max(layouts, key=lambda layout: len(set(layout.names(paths).values()) & set(tensors)))


def grouped(names: Iterable[str]) -> str:
    """`["bn1.bias", "bn1.weight", "fc"]` -> `"bn1.{bias, weight}, fc"`: all names, but not all letters."""
    groups = {}
    for name in sorted(names):
        parent, _, leaf = name.rpartition(".")
        groups.setdefault(parent, []).append(leaf)
    return ", ".join(
        f"{parent}.{{{', '.join(leaves)}}}" if len(leaves) > 1 else f"{parent}.{leaves[0]}".removeprefix(".")
        for parent, leaves in groups.items()
    )


# --- The layouts -----------------------------------------------------------------------------------------------------


PLAIN = Layout("jaxcam", lambda path, paths: path)  # as the modules of this package are named
TORCHVISION = Layout("torchvision", lambda path, paths: path)  # as is its ResNet here, and timm's

_EFFICIENTNET_PYTORCH = {
    "stem.conv": "_conv_stem",
    "stem.bn": "_bn0",
    "head.conv": "_conv_head",
    "head.bn": "_bn1",
    "fc": "_fc",
}
_EFFICIENTNET_PYTORCH_BLOCK = {
    "expand.conv": "_expand_conv",
    "expand.bn": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.bn": "_bn1",
    "squeeze_excite.reduce": "_se_reduce",
    "squeeze_excite.expand": "_se_expand",
    "project.conv": "_project_conv",
    "project.bn": "_bn2",
}


def _efficientnet_pytorch(path: str, paths: tuple[str, ...]) -> str:
    """`"blocks.1.1.project.bn"` -> `"_blocks.2._bn2"`: the blocks of all stages are numbered through."""
    found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", path)
    if not found:
        return _EFFICIENTNET_PYTORCH[path]
    stage, block, part = found.groups()
    return f"_blocks.{_numbers(paths)[int(stage), int(block)]}.{_EFFICIENTNET_PYTORCH_BLOCK[part]}"


@lru_cache(maxsize=8)
def _numbers(paths: tuple[str, ...]) -> dict[tuple[int, int], int]:
    """Of each block by its stage and its place in it, its place among all of them."""
    blocks = {tuple(map(int, path.split(".")[1:3])) for path in paths if path.startswith("blocks.")}
    return {block: number for number, block in enumerate(sorted(blocks))}


EFFICIENTNET_PYTORCH = Layout("efficientnet_pytorch", _efficientnet_pytorch)  # and efficientnet_lite_pytorch
