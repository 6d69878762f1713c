"""Reach inside an unmodified Flax model: activations at a layer, and a perturbation that is added there.

A `Tap` is a pytree: the weights are its leaves, the module and the layer names are static, so it goes through `jit`
like any other argument. One function runs the model with hooks on the named layers; the gradient with respect to the
added perturbation is the gradient with respect to the activation, and XLA drops everything below the layer from the
backward pass. This is the only file that knows Flax's internals: Linen is hooked by `intercept_methods`, which also sow
what is captured, NNX by giving the merged copy of the submodule a subclass with a wrapped `__call__`. The same two
routes read what some methods need of *every* layer of a kind: biases and attention weights.
"""

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxcam._errors import unknown


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables", "arrays"],
    meta_fields=["module", "layers", "options", "reshape"],
)
@dataclass(frozen=True, eq=False)
class Tap:
    """A model with a hook on one or several layers; `Tap(images)` gives the logits. Made by `jaxcam.tap`.

    Attributes:
      variables: the weights, as pytree leaves.
      arrays: those keyword arguments of the model that hold arrays, as pytree leaves.
      module: the Linen module or NNX graph definition (static).
      layers: dotted paths of the tapped layers (static).
      options: the model's other keyword arguments (static).
      reshape: turns the token sequences that the layers return into maps; `None` where they are maps (static).
    """

    variables: Any
    arrays: dict[str, Any]
    module: Any
    layers: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    reshape: Callable | None = None

    def __call__(self, images):
        """The model's output, `[n, k]` for a classifier."""
        return self.run(images, layers=())[0]

    def activations(self, images):
        """What the tapped layer returns, `[n, h', w', k]`; a tuple of them where several layers are tapped."""
        activations = self.run(images)[1]
        return activations[0] if len(activations) == 1 else activations

    def run(self, images, perturbations: Sequence | None = None, *, layers: tuple[str, ...] | None = None):
        """Output and activations (a tuple, one per layer), with `perturbations[i]` added to what layer `i` returns."""
        layers = self.layers if layers is None else layers
        return self._forward(images, _run_linen, _run_nnx, _Hooks(layers, perturbations))

    def biases(self, images, perturbations: Sequence | None = None):
        """Output, and the bias of every layer that has one (a tuple, in the order of the calls).

        The bias of a layer is what it returns for an input of zeros: that of a convolution or dense layer, the shift of
        a BatchNorm with its running statistics, a position embedding. It has the shape of what the layer returns.
        Layers are the innermost modules that own parameters; one that owns a kernel alone has no bias.
        `perturbations[i]` is added to what layer `i` returns, so that the gradient can be taken there.
        """
        return self._forward(images, _biases_linen, _biases_nnx, perturbations)

    def attention(self, images):
        """The weights `[n, heads, queries, keys]` of every attention layer (a tuple, in the order of the calls)."""
        return self._forward(images, _attention_linen, _attention_nnx)

    def _forward(self, images, linen: Callable, of_nnx: Callable, *args):
        forward = of_nnx if isinstance(_unwrap(self.module), nnx.GraphDef) else linen
        return forward(_unwrap(self.module), self.variables, images, {**dict(self.options), **self.arrays}, *args)

    def gradients(self, images, scalar: Callable):
        """Output, activations and the gradient of `scalar(output)` with respect to each of the activations.

        With a scalar that sums one score per image, row `i` of a gradient belongs to image `i` alone.
        """

        def perturbed(perturbations):
            output, activations = self.run(images, perturbations)
            return scalar(output), (output, activations)

        # `zeros_like` of the activation itself: under `shard_map` it varies over the mesh as the activation does, where
        # plain zeros would gather the sum of all shards. Only the shape is used, so XLA drops this first pass.
        zeros = jax.tree.map(jnp.zeros_like, self.run(images)[1])
        gradients, (output, activations) = jax.grad(perturbed, has_aux=True)(zeros)
        return output, activations, gradients


def tap(module, variables, layer: str | Sequence[str], *, reshape: Callable | None = None, **apply_kwargs) -> Tap:
    """Puts a hook on `layer` of a Flax model.

    Args:
      module: a Linen module, or an NNX model after `model.eval()` (its state is copied now; a later training step needs
        a new tap).
      variables: what `module.apply` takes; `None` for an NNX model.
      layer: dotted path as in torchvision, `"layer4"` or `"layer4.1.conv2"`; a sequence taps several at once. Where a
        module is called more than once, `"path[1]"` names its second call. `jaxcam.layers` lists them.
      reshape: for layers that return token sequences, the function `tokens [n, t, k] -> maps [n, h', w', k]` by which
        CAM methods see activations and gradients, such as `jaxcam.tokens((14, 14))`. It is static: pass the same
        function again, or an equal `tokens`, and nothing is compiled anew.
      **apply_kwargs: passed to the model at every call, such as `train=False`.

    Raises:
      TypeError: `module` is neither a Linen nor an NNX module, or `variables` does not fit it.
      ValueError: at the first call, a path that does not exist (the message names the closest ones), or an NNX model in
        training mode.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxcam
      >>> module = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(3)])
      >>> images = jnp.ones((2, 8, 8, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> jaxcam.tap(module, variables, "layers_0").activations(images).shape
      (2, 8, 8, 4)
    """
    layers = tuple(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else (layer,)
    if not layers or not all(isinstance(each, str) and each for each in layers):
        raise TypeError(f"layer is {layer!r}; it must be a dotted path such as 'layer4', or several of them.")
    if isinstance(module, nnx.Module):
        if variables is not None:
            raise TypeError("An NNX model carries its own variables: pass None in their place.")
        module, variables = nnx.split(module)
        variables = jax.tree.map(lambda leaf: leaf, variables)  # a copy: the model's own change as it is trained
    elif isinstance(module, nn.Module):
        if not hasattr(variables, "keys") or "params" not in variables:
            raise TypeError('variables must be what module.init returned, a mapping with the key "params".')
        variables = {name: value for name, value in variables.items() if name != "intermediates"}
        if "mutable" in apply_kwargs:
            raise TypeError("A tap explains a model and never changes it: leave out `mutable`.")
    else:
        raise TypeError(f"module is a {type(module).__name__}; it must be a flax.linen.Module or a flax.nnx.Module.")
    is_array = {name: any(map(_is_array, jax.tree.leaves(value))) for name, value in apply_kwargs.items()}
    arrays = {name: value for name, value in apply_kwargs.items() if is_array[name]}
    options = tuple((name, value) for name, value in sorted(apply_kwargs.items()) if not is_array[name])
    return Tap(variables, arrays, _hashable(module), layers, options, reshape)


@dataclass(frozen=True)
class Tokens:
    """Turns a vision transformer's tokens `[n, t, k]` into maps `[n, h', w', k]`. Made by `jaxcam.tokens`.

    Attributes:
      grid: rows and columns of image patches.
      drop: leading tokens that are no patches.
    """

    grid: tuple[int, int]
    drop: int

    def __call__(self, tokens):
        count = self.drop + self.grid[0] * self.grid[1]
        if tokens.ndim != 3 or tokens.shape[1] != count:
            raise ValueError(
                f"The layer returns {tokens.shape}, and {self} reads [n, {count}, k]: "
                f"{self.drop} leading tokens and {self.grid[0]} x {self.grid[1]} patches. "
                "Tap a layer that returns the token sequence, and give its grid."
            )
        return tokens[:, self.drop :].reshape(tokens.shape[0], *self.grid, tokens.shape[2])


def tokens(grid: tuple[int, int], *, drop: int = 1) -> Tokens:
    """How the tokens of a vision transformer lie on the image: the `reshape` of `jaxcam.tap`.

    Args:
      grid: rows and columns of image patches; `(14, 14)` for 224 x 224 pixels in patches of 16.
      drop: leading tokens that are no patches: 1 for a class token, 0 where there is none, more with registers.

    Raises:
      ValueError: at the first call, where the layer does not return `drop + rows * columns` tokens.

    Example:
      >>> import jax.numpy as jnp, jaxcam
      >>> jaxcam.tokens((14, 14))(jnp.ones((2, 197, 768))).shape
      (2, 14, 14, 768)
    """
    return Tokens((int(grid[0]), int(grid[1])), int(drop))


def layers(module, images, variables=None, **apply_kwargs) -> dict[str, tuple[int, ...]]:
    """The shape that each layer of `module` returns for `images`: `{path: shape}`, in the order of the calls.

    Nothing is computed. `variables` may be left out: they are then those of `module.init`.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, jaxcam
      >>> jaxcam.layers(nn.Sequential([nn.Conv(4, (3, 3)), nn.Dense(3)]), jnp.ones((2, 8, 8, 3)))
      {'layers_0': (2, 8, 8, 4), 'layers_1': (2, 8, 8, 3)}
    """
    hooks = _Hooks((), None)

    def run(images, variables):
        if isinstance(module, nnx.Module):
            model = nnx.clone(module)
            model.eval()  # the shapes are the same, and nothing changes
            graphdef, state = nnx.split(model)
            _run_nnx(graphdef, state, images, apply_kwargs, hooks)
        elif variables is None:
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
            with _intercepted(lambda submodule, call: _hooked_linen(submodule, call, hooks)):
                module.init(keys, images, **apply_kwargs)
        else:
            _run_linen(module, variables, images, apply_kwargs, hooks)

    jax.eval_shape(run, images, variables)
    return {path: shapes[0] for path, shapes in hooks.shapes.items() if shapes[0] is not None}


class _Hooks:
    """Sees every module call of one forward pass, and adds the perturbations to the calls that they are meant for."""

    def __init__(self, layers: tuple[str, ...], perturbations: Sequence | None):
        self.layers = layers
        self.targets = [_parse(layer) for layer in layers]
        self.perturbations = perturbations
        self.shapes: dict[str, list] = {}  # path -> the shape of what each of its calls returned

    @property
    def paths(self):
        return {path for path, _ in self.targets}

    def returned(self, path: str, output):
        """Called once for each module call; gives back the output, perturbed where it is tapped."""
        calls = self.shapes.setdefault(path, [])
        if self.perturbations is not None:
            for (target, index), perturbation in zip(self.targets, self.perturbations, strict=True):
                if target == path and (index or 0) == len(calls):
                    output = jax.tree.map(lambda x, p=perturbation: x + p if _is_inexact(x) else x, output)
        leaf = _activation(output)
        calls.append(None if leaf is None else leaf.shape)
        return output

    def select(self, captured: dict[str, Sequence]) -> tuple:
        """The activation of each layer, from what was captured of each path, one entry per call."""
        return tuple(self._select(layer, captured) for layer in self.layers)

    def _select(self, layer, captured):
        path, index = _parse(layer)
        calls = len(self.shapes.get(path, ()))
        if calls == 0:
            raise unknown("layer", layer, self.shapes, "`jaxcam.layers(module, images)` lists them all.")
        if path not in captured:
            raise ValueError(
                f"Layer {layer!r} lies inside nn.scan or nn.vmap, where a single call cannot be reached. "
                "Tap a layer before or after the loop, or build the model without it."
            )
        if index is None and calls > 1:
            raise ValueError(
                f"Layer {path!r} is called {calls} times; name one call, '{path}[0]' ... '{path}[{calls - 1}]'."
            )
        if (index or 0) >= calls:
            raise ValueError(f"Layer {path!r} is called {calls} times, so there is no {layer!r}; calls count from 0.")
        activation = _activation(captured[path][index or 0])
        if activation is None:
            raise ValueError(
                f"Layer {layer!r} does not return one floating-point array; tap a layer inside or after it."
            )
        return activation


def _run_linen(module, variables, images, kwargs, hooks: _Hooks):
    hook = partial(_hooked_linen, hooks=hooks)
    output, state = _apply_intercepted(module, variables, images, kwargs, hook)
    captured = {path: values for path in hooks.paths if (values := _captured(state, path, "tapped"))}
    return output, hooks.select(captured)


def _hooked_linen(submodule, call, hooks: _Hooks):
    path = ".".join(submodule.path)

    def hooked(*args, **kwargs):
        output = hooks.returned(path, call(*args, **kwargs))
        if path in hooks.paths:
            submodule.sow("intermediates", "tapped", output)
        return output

    return hooked


@contextmanager
def _intercepted(hook: Callable):
    """Every call of a Linen submodule goes through `hook(submodule, call)`, a parent class's within it only once."""
    running = []

    def intercept(next_call, args, kwargs, context):
        submodule = context.module
        if context.method_name != "__call__" or not submodule.path or any(each is submodule for each in running):
            return next_call(*args, **kwargs)
        running.append(submodule)
        try:
            return hook(submodule, next_call)(*args, **kwargs)
        finally:
            running.remove(submodule)

    with nn.intercept_methods(intercept):
        yield


def _captured(state, path: str, name: str):
    """What the submodule at `path` has sown under `name`, one entry per call; empty where a loop kept it."""
    node = state.get("intermediates", {})
    for each in (*path.split("."), name):
        node = node.get(each, {}) if hasattr(node, "get") else {}
    return node


def _run_nnx(graphdef, state, images, kwargs, hooks: _Hooks):
    captured: dict[str, list] = {}

    def hook(path, submodule, call):
        def hooked(*args, **kwargs):
            output = hooks.returned(path, call(*args, **kwargs))
            if path in hooks.paths:
                captured.setdefault(path, []).append(output)
            return output

        return hooked

    return _call_nnx(graphdef, state, images, kwargs, hook), hooks.select(captured)


def _call_nnx(graphdef, state, images, kwargs, hook: Callable, **methods):
    """Runs the merged model, each of whose submodules calls `hook(path, submodule, call)` in place of `call`."""
    model = nnx.merge(graphdef, state, copy=True)
    changing = nnx.Any(nnx.BatchStat, nnx.RngState)
    before = jax.tree.leaves_with_path(nnx.state(model, changing))

    def wrap(path, submodule):
        cls = type(submodule)

        def __call__(self, *args, **kwargs):
            return hook(path, self, partial(cls.__call__, self))(*args, **kwargs)

        # The merged model is this call's own copy, so changing the class of one of its instances disturbs nobody.
        object.__setattr__(submodule, "__class__", type(cls.__name__, (cls,), {"__call__": __call__, **methods}))

    for path, submodule in list(nnx.iter_modules(model)):
        if path and callable(submodule):
            wrap(".".join(map(str, path)), submodule)
    output = model(images, **kwargs)
    for (path, old), new in zip(before, jax.tree.leaves(nnx.state(model, changing)), strict=True):
        if new is not old:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"The model changes {name!r} as it runs, so it is in training mode, where images influence each other, "
                "or chance does. Call `model.eval()` before jaxcam.tap."
            )
    return output


class _Biases:
    """Finds the innermost modules that own parameters, in the order of their calls, and perturbs what they return."""

    def __init__(self, perturbations: Sequence | None):
        self.perturbations = perturbations
        self.count = 0

    def visit(self, owned: Collection[str], call: Callable, alone: Callable, keep: Callable, args, kwargs):
        """Runs one module call; `alone` is the same module outside the model, `keep` takes its bias."""
        found = self.count
        output = call(*args, **kwargs)
        innermost = found == self.count
        given = [*((i, each) for i, each in enumerate(args)), *kwargs.items()]
        place, x = next(((place, each) for place, each in given if _is_array(each)), (None, None))
        if set(owned) <= {"kernel"} or not innermost or not (_is_inexact(x) and _is_inexact(output)):
            return output
        zeros = jnp.zeros_like(x[:1])  # one image is enough: the bias is the same for all
        args = [zeros if i == place else each for i, each in enumerate(args)]
        bias = alone(*args, **{name: zeros if name == place else each for name, each in kwargs.items()})
        keep(jnp.broadcast_to(bias, output.shape))
        self.count += 1
        return output if self.perturbations is None else output + self.perturbations[found]


def _biases_linen(module, variables, images, kwargs, perturbations):
    biases, paths = _Biases(perturbations), []

    def hook(submodule, call):
        def alone(*args, **kwargs):
            copy, variables = submodule.unbind()
            return copy.apply(variables, *args, **kwargs)

        def keep(bias):
            submodule.sow("intermediates", "bias", bias)
            paths.append(".".join(submodule.path))

        owned = _owned_linen(submodule)
        return lambda *args, **kwargs: biases.visit(owned, call, alone, keep, args, kwargs)

    output, state = _apply_intercepted(module, variables, images, kwargs, hook)
    return output, _in_order(state, paths, "bias")


def _owned_linen(submodule) -> set[str]:
    """Names of the arrays that a bound module owns itself, not through its submodules."""
    collections = (values for name, values in submodule.variables.items() if name != "intermediates")
    return {name for values in collections for name, value in values.items() if _is_array(value)}


def _biases_nnx(graphdef, state, images, kwargs, perturbations):
    biases, kept = _Biases(perturbations), []

    def hook(path, submodule, call):
        owned = {name for name, value in vars(submodule).items() if isinstance(value, nnx.Variable)}
        return lambda *args, **kwargs: biases.visit(owned, call, call, kept.append, args, kwargs)

    return _call_nnx(graphdef, state, images, kwargs, hook), tuple(kept)


def _attention_linen(module, variables, images, kwargs):
    paths = []

    def hook(submodule, call):
        if not isinstance(submodule, nn.MultiHeadDotProductAttention):
            return call
        paths.append(".".join(submodule.path))
        return partial(call, sow_weights=True)

    _, state = _apply_intercepted(module, variables, images, kwargs, hook)
    return _in_order(state, paths, "attention_weights")


def _attention_nnx(graphdef, state, images, kwargs):
    captured = []

    def hook(path, submodule, call):
        return partial(call, sow_weights=True) if isinstance(submodule, nnx.MultiHeadAttention) else call

    def sow(self, variable_type, name, value, **_):
        if name == "attention_weights":
            captured.append(value)

    _call_nnx(graphdef, state, images, kwargs, hook, sow=sow)
    return tuple(captured)


def _apply_intercepted(module, variables, images, kwargs, hook):
    with _intercepted(hook):
        return module.apply(variables, images, mutable=["intermediates"], **kwargs)


def _in_order(state, paths: Sequence[str], name: str) -> tuple:
    """What was sown under `name` by the calls of `paths`, in their order."""
    values = {path: list(_captured(state, path, name)) for path in paths}
    for path in paths:
        if len(values[path]) != paths.count(path):
            raise ValueError(
                f"Layer {path!r} lies inside nn.scan or nn.vmap, where a single call cannot be reached. "
                "Build the model without the loop."
            )
    return tuple(values[path].pop(0) for path in paths)


def _parse(layer: str) -> tuple[str, int | None]:
    """`"relu[1]"` is the second call of `relu`; without an index there must be one call."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", layer)
    return (match[1], int(match[2])) if match else (layer, None)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_inexact(value) -> bool:
    return _is_array(value) and jnp.issubdtype(value.dtype, jnp.inexact)


def _activation(output):
    """The one floating-point array in what a layer returned, or `None`."""
    leaves = [leaf for leaf in jax.tree.leaves(output) if _is_inexact(leaf)]
    return leaves[0] if len(leaves) == 1 else None


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """Holds a module that cannot be hashed (a list or dict among its fields), and is equal only to itself."""

    module: Any


def _hashable(module):
    try:
        hash(module)
    except TypeError:
        # One holder per module, so that a second tap of the same module does not recompile.
        holder = getattr(module, "_jaxcam_holder", None) or _ByIdentity(module)
        object.__setattr__(module, "_jaxcam_holder", holder)
        return holder
    return module


def _unwrap(module):
    return module.module if isinstance(module, _ByIdentity) else module
