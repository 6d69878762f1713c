"""Flax variables as the tensors of a file, and back: every tensor must be used, and every shape must match."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcam._errors import shown
from jaxcam.models._families import FAMILIES
from jaxcam.models.layouts import LAYOUTS, Layout

LEAVES = {  # Flax's collection and leaf, and PyTorch's word for it
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("params", "token"): "token",
    ("params", "positions"): "positions",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
ATTENTION = ("query", "key", "value", "out")  # whose features Flax splits by heads


def _name(path: tuple[str, ...]) -> str:
    """`("params", "layer1", "0", "conv1", "kernel")` -> `"layer1.0.conv1.weight"`."""
    collection, *modules, leaf = path
    if (collection, leaf) not in LEAVES:
        raise ValueError(f"The variable {'/'.join(path)} has no counterpart in a PyTorch state dict.")
    return ".".join([*modules, LEAVES[collection, leaf]])


def _as_in_torch(path: tuple[str, ...], leaf):
    """Kernels `[..., in, out]` become `[out, in, ...]`, and heads are joined."""
    if path[-2] in ATTENTION and leaf.ndim == (3 if path[-1] == "kernel" else 2):
        ends = {"kernel": (-1, leaf.shape[-1]) if path[-2] == "out" else (leaf.shape[0], -1), "bias": (-1,)}
        leaf = leaf.reshape(ends[path[-1]])
    if path[-1] != "kernel":
        return leaf
    return leaf.transpose(leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))


def _as_in_flax(path: tuple[str, ...], tensor, shape):
    return (np.moveaxis(tensor, (0, 1), (-1, -2)) if path[-1] == "kernel" else tensor).reshape(shape)


def _by_our_names(variables: Mapping) -> dict:
    flat = flatten_dict(variables)
    return {_name(path): _as_in_torch(path, leaf) for path, leaf in flat.items()}


def state_dict(variables: Mapping, layout: Layout | None = None) -> dict[str, np.ndarray]:
    """Flax variables under PyTorch's names and in its layout: kernels `[..., in, out]` become `[out, in, ...]`.

    Args:
      variables: of a module of this package, or of any whose submodules are named as in PyTorch.
      layout: whose names the tensors get, one of `jaxcam.models.layouts.LAYOUTS`; by default torchvision's where it has
        the network, else the module's own.

    Raises:
      ValueError: a variable has no counterpart in PyTorch.
      KeyError: a variable has none in the layout.

    Example:
      >>> list(state_dict({"params": {"fc": {"kernel": np.zeros((512, 10))}}}).items())[0][1].shape
      (10, 512)
    """
    tensors = _by_our_names(jax.tree.map(np.asarray, dict(variables)))
    if layout is not None:
        return layout.theirs(tensors)
    for family in FAMILIES:
        layout = next(each for each in LAYOUTS if each.family is family)
        if layout.has_all(tensors):
            return layout.theirs(tensors)
    return tensors


@lru_cache(maxsize=8)  # tracing a ResNet takes longer than reading its file
def _template(module: nn.Module) -> dict:
    """The shapes of the module's variables."""
    side = getattr(module, "image_size", 64)
    return jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


@lru_cache(maxsize=8)
def _expected(module: nn.Module, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors of a file must have."""
    tensors = jax.eval_shape(lambda variables: layout.theirs(_by_our_names(variables)), _template(module))
    return {name: tensor.shape for name, tensor in tensors.items()}


def variables_of(tensors: Mapping, module: nn.Module, layout: Layout, what: str) -> dict:
    """The tensors of a file as the module's variables.

    Raises:
      ValueError: they are not exactly the module's; all that differs is listed.
    """
    expected = _expected(module, layout)
    wrong, floats = [], {}
    for key in expected.keys() & tensors.keys():
        tensor, shape = tensors[key], expected[key]
        if not isinstance(tensor, np.ndarray):
            wrong.append(f"{key} is {type(tensor).__name__} instead of a tensor")
        elif tensor.shape != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            wrong.append(f"{key} is {tensor.dtype} {shown(list(tensor.shape))} instead of float {list(shape)}")
        else:
            with np.errstate(over="ignore"):  # a float64 that overflows is reported as infinite
                floats[key] = tensor.astype(np.float32, copy=False)
    problems = {
        "missing": expected.keys() - tensors.keys(),
        "unknown": tensors.keys() - expected.keys(),
        "with NaN or infinite values": [key for key, value in floats.items() if not np.isfinite(value).all()],
    }
    listed = [f"{len(names)} {kind}: {grouped(names)}" for kind, names in problems.items() if names]
    if wrong:
        listed.append(f"{len(wrong)} of another shape or type: {', '.join(sorted(wrong))}")
    if listed:
        size = ", ".join(f"{name} {getattr(module, name)}" for name in layout.family.open)
        raise ValueError(f"The tensors of {what} ({size}) are not exactly what they should be: {'; '.join(listed)}.")
    ours = layout.ours(floats)
    flat = {  # `jnp.asarray` would compile for each shape
        path: jax.device_put(_as_in_flax(path, ours[_name(path)], leaf.shape))  # pyright: ignore[reportAttributeAccessIssue]
        for path, leaf in flatten_dict(_template(module)).items()
    }
    return unflatten_dict(flat)


def grouped(names: Iterable[str]) -> str:
    """`["bn1.bias", "bn1.weight", "fc"]` -> `"bn1.{bias, weight}, fc"`: all names, but not all letters of each."""
    groups = {}
    for name in sorted(names):
        parent, _, leaf = name.rpartition(".")
        groups.setdefault(shown(parent), []).append(shown(leaf))
    return ", ".join(
        f"{parent}.{{{', '.join(leaves)}}}" if len(leaves) > 1 else f"{parent}.{leaves[0]}".removeprefix(".")
        for parent, leaves in groups.items()
    )
