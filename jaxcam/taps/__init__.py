"""Taps: one file for each kind of model, behind the one protocol of `taps.tap`; nobody else knows a framework."""

import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from jaxcam._array import Rows
from jaxcam._checks import as_array
from jaxcam.taps import equinox, functions, keras, linen
from jaxcam.taps.tap import Head, Network, Tap, is_array
from jaxcam.taps.tokens import Tokens, tokens


def tap(
    model,
    variables=None,
    layer: str | Sequence[str] = (),
    *,
    reshape: Callable | None = None,
    output: Any = None,
    context: Any = None,
    **apply_kwargs,
) -> Tap:
    """Puts a hook on `layer` of a model.

    Args:
      model: unmodified; one of
        a Linen module;
        an NNX model after `model.eval()` (its state is copied now; a later training step needs a new tap);
        a Keras 3 model on the JAX backend;
        an Equinox module that takes one image, channels first, after `eqx.nn.inference_mode` (a `state` and a `key` go
        into `apply_kwargs`);
        two functions `(features, head)`, with `features(variables, images) -> activations` and
        `head(variables, activations) -> output`, both of which are given `context` and `apply_kwargs` too: Haiku, plain
        JAX, anything;
        one function `(variables, images) -> output`, which has no layer, for methods that need none.
      variables: what `module.apply` takes, or the functions' first argument; `None` for models that carry their own.
      layer: dotted path as the framework spells it, `"layer4"` or `"layer4.1.conv2"`; a sequence taps several at once.
        Where a layer is called more than once, `"path[1]"` names its second call. `jaxcam.layers` lists them. Two
        functions have one layer, and it need not be named.
      reshape: for layers that return token sequences, the function `tokens [n, t, k] -> maps [n, *cells, k]` by which
        CAM methods see activations and gradients, such as `jaxcam.tokens((14, 14))`. It is static: pass the same
        function again, or an equal `tokens`, and nothing is compiled anew.
      output: picks what is explained where the model returns more than logits `[n, k]`: a key, an index, or a function
        of the output. Static, like `reshape`. A `score` is called with what it picks.
      context: a pytree of further inputs of the model, with a row for each image (metadata, a mask, text embeddings):
        a dict goes in by name, a tuple by place after the images, anything else as the second input. It is never
        explained; wherever a method repeats an image, its row is repeated with it.
      **apply_kwargs: passed to the model at every call, such as `train=False`; the same for all images.

    Raises:
      TypeError: `model` is none of these, `variables` does not fit it, or an argument that it needs is missing.
      ValueError: at the first call, a path that does not exist (the message names the closest ones), or a model in
        training mode.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxcam
      >>> module = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(3)])
      >>> images = jnp.ones((2, 8, 8, 3))
      >>> variables = module.init(jax.random.key(0), images)
      >>> jaxcam.tap(module, variables, "layers_0").features(images).shape
      (2, 8, 8, 4)
    """
    kind = _kind(model)
    layers = tuple(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else (layer,)
    if not all(isinstance(each, str) and each for each in layers):
        raise TypeError(f"layer is {layer!r}; it must be a dotted path such as 'layer4', or several of them.")
    if kind is functions:
        layers = layers or functions.layers(model)
    elif not layers:
        raise TypeError('A tap needs a layer, such as "layer4"; `jaxcam.layers(model, images, variables)` lists them.')
    return _tap(kind, model, variables, layers, reshape, output, context, apply_kwargs)


def _tap(kind, model, variables, layers, reshape, output, context, options) -> Tap:
    network, variables = kind.wrap(model, variables, options)
    is_dynamic = {name: any(map(is_array, jax.tree.leaves(value))) for name, value in options.items()}
    arrays = {name: value for name, value in options.items() if is_dynamic[name]}
    static = tuple((name, value) for name, value in sorted(options.items()) if not is_dynamic[name])
    for name, value in static:
        if not isinstance(value, Hashable):
            raise TypeError(f"{name} is a {type(value).__name__}; what is no array must be hashable, such as a tuple.")
    context = jax.tree.map(_as_rows, context)
    if kind is linen:
        linen.check_arguments(model, context, options)
    layers = tuple(network.resolve(model, layer) for layer in layers)
    return Tap(variables, arrays, context, network, layers, static, reshape, output)


def _as_rows(array) -> Rows:
    if not is_array(array):
        raise TypeError(f"context holds a {type(array).__name__}; it must hold arrays with a row for each image.")
    return Rows(as_array(array) if isinstance(array, np.ndarray) else array)


def layers(model, images, variables=None, *, context=None, **apply_kwargs) -> dict[str, tuple[int, ...]]:
    """The shape that each layer of `model` returns for `images`: `{path: shape}`, in the order of the calls.

    Nothing is computed. A Linen module's `variables` may be left out: they are then those of `module.init`.

    Args:
      model, variables, context, apply_kwargs: what `jaxcam.tap` takes; or a tap alone.
      images: an array `[n, *space, c]`, or `jax.ShapeDtypeStruct` of one.

    Raises:
      TypeError: a model that `jaxcam.tap` does not take.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, jaxcam
      >>> jaxcam.layers(nn.Sequential([nn.Conv(4, (3, 3)), nn.Dense(3)]), jnp.ones((2, 8, 8, 3)))
      {'layers_0': (2, 8, 8, 4), 'layers_1': (2, 8, 8, 3)}
    """
    if isinstance(model, Tap):
        return model.shapes(images)
    kind = _kind(model)
    given = (None, None, context, apply_kwargs)
    if kind is linen and variables is None:
        return linen.layers_of_init(model, images, _tap(kind, model, {"params": {}}, (), *given))
    model = getattr(kind, "in_evaluation", lambda model: model)(model)
    return _tap(kind, model, variables, (), *given).shapes(images)


def _kinds():
    """The first that matches has it: an Equinox module is callable, too."""
    yield linen
    if "flax.nnx" in sys.modules:  # who has an NNX model has imported it, which takes a fifth of a second
        from jaxcam.taps import nnx

        yield nnx
    yield from (keras, equinox, functions)


def _kind(model):
    for kind in _kinds():
        if kind.matches(model):
            return kind
    if all(callable(getattr(model, name, None)) for name in ("init", "apply")):
        raise TypeError(
            f"model is a {type(model).__name__}, a pair of init and apply; pass its apply, jaxcam.tap(model.apply, "
            "variables), as a function (variables, images) -> output: of Haiku that of hk.without_apply_rng(model)."
        )
    raise TypeError(
        f"model is a {type(model).__name__}; it must be a flax.linen or flax.nnx module, a Keras 3 model on the JAX "
        "backend, an Equinox module, two functions (features, head), or one function of variables and images."
    )


__all__ = ["Head", "Network", "Tap", "Tokens", "layers", "tap", "tokens"]
