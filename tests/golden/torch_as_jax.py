"""PyTorch code on JAX arrays: a tensor that stands for an array, and a table of what each ATen operation is in JAX.

`run(function, *arrays)` calls any function of tensors, a module too, with arrays in their place. Its Python code runs
as it is; what reaches PyTorch's dispatcher is looked up in `OPERATIONS` and done by `jax.numpy`. So a model can be
traced, differentiated and batched by JAX, and every module is a `jax.named_scope`. Weights are constants.
"""

from contextlib import ExitStack, contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch.utils._pytree import tree_map, tree_map_only

DTYPES = {"bool": torch.bool, "int32": torch.int64, "uint8": torch.uint8, "float32": torch.float32}
JAX_DTYPES = {torch.bool: jnp.bool_, torch.uint8: jnp.uint8} | dict.fromkeys([torch.int32, torch.int64], jnp.int32)


class Stand(torch.Tensor):
    """Stands for `array` in PyTorch code."""

    @staticmethod
    def __new__(cls, array):
        return torch.Tensor._make_wrapper_subclass(cls, array.shape, dtype=DTYPES[str(array.dtype)])

    def __init__(self, array):
        self.array = array

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        in_place = name.endswith("_") and not name.startswith("_")
        operation = OPERATIONS.get(name.rstrip("_") if in_place else name)
        if operation is None:
            found = function.decompose(*args, **(kwargs or {}))
            if found is NotImplemented:
                raise NotImplementedError(f"torch_as_jax has no aten.{name}")
            return found
        arrays, named = tree_map_only(torch.Tensor, as_array, (args, kwargs or {}))
        named = {key: value for key, value in named.items() if key not in ("device", "layout", "pin_memory")}
        found = operation(*arrays, **named)
        if in_place and not isinstance(args[0], Stand):
            raise NotImplementedError("torch_as_jax cannot write into a tensor that is no array")
        if in_place:
            args[0].array = found
            return args[0]
        return tree_map_only(jax.Array, Stand, found)


def as_array(tensor) -> jax.Array:
    """The array that a tensor stands for, or one of its values."""
    if isinstance(tensor, Stand):
        return tensor.array
    return jnp.asarray(tensor.detach().numpy()).astype(jax_dtype(tensor.dtype))


def jax_dtype(dtype):
    return JAX_DTYPES.get(dtype, jnp.float32)


def run(function, *args, modules=None, hooks=()):
    """`function(*args)` on JAX; tensors and arrays in `args` become arrays, and what it returns too.

    `hooks` are pairs of a module and `hook(module, args, output)`, as of `register_forward_hook`; or with `args` alone,
    as of `register_forward_pre_hook`. Modules in `modules`, `{name: module}`, are named scopes.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for name, module in (modules or {}).items():
            stack.enter_context(_scope(name, module))
        for module, before, hook in hooks:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(hook).remove)
        stood = tree_map(lambda each: Stand(each) if isinstance(each, jax.Array) else each, args)
        return tree_map_only(torch.Tensor, as_array, function(*stood))


@contextmanager
def _scope(name, module):
    open_scopes = []

    def enter(module, args):
        open_scopes.append(jax.named_scope(name))
        open_scopes[-1].__enter__()

    def leave(module, args, output):
        open_scopes.pop().__exit__(None, None, None)

    handles = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- Operations -------------------------------------------------------------------------------------------------------


def _axes(x, dim):
    """PyTorch's `dim`, which may be one, several, none or an empty list."""
    dims = range(x.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return tuple(each % max(x.ndim, 1) for each in dims) if x.ndim else None


def _reduce(function):
    def reduce(x, dim=None, keepdim=False, dtype=None):
        x = x.astype(jnp.int32) if x.dtype == bool and function is jnp.sum else x
        return function(x, _axes(x, dim), keepdims=keepdim)

    return reduce


def _extremum(function, where):
    def extremum(x, other=None, keepdim=False):
        if other is None:
            return function(x)
        if isinstance(other, int):
            return function(x, other, keepdims=keepdim), where(x, other, keepdims=keepdim).astype(jnp.int32)
        return (jnp.maximum if function is jnp.max else jnp.minimum)(x, other)

    return extremum


def _each(value, count):
    """A number for each axis of space; one stands for all."""
    value = list(value) if isinstance(value, list | tuple) else [value]
    return value * count if len(value) == 1 else value


def _convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups):
    if transposed:
        raise NotImplementedError("torch_as_jax has no transposed convolution")
    count, lone = w.ndim - 2, x.ndim == w.ndim - 1
    pads = [(side, side) for side in _each(padding, count)]
    options = {"rhs_dilation": _each(dilation, count), "feature_group_count": groups}
    found = lax.conv_general_dilated(x[None] if lone else x, w, _each(stride, count), pads, **options)
    found = found if b is None else found + b.reshape(-1, *(1,) * count)
    return found[0] if lone else found


def _windows(x, size, stride, padding, ceil_mode, count):
    """Window, strides and padding of a pool over the last `count` axes, of all axes of `x`."""
    size, padding = _each(size, count), _each(padding, count)
    stride = _each(stride, count) if stride not in (None, []) else size
    pads = []
    for side, window, step, pad in zip(x.shape[-count:], size, stride, padding, strict=True):
        rest = (side + 2 * pad - window) % step
        pads.append((pad, pad + (step - rest if ceil_mode and rest else 0)))
    ones = [1] * (x.ndim - count)
    return (*ones, *size), (*ones, *stride), [(0, 0)] * (x.ndim - count) + pads


def _max_pool(count, indices=True):
    def pool(x, size, stride=(), padding=0, dilation=1, ceil_mode=False):
        if set(_each(dilation, 1)) != {1}:
            raise NotImplementedError("torch_as_jax has no dilated max-pool")
        found = lax.reduce_window(x, -jnp.inf, lax.max, *_windows(x, size, stride, padding, ceil_mode, count))
        return (found, jnp.zeros(found.shape, jnp.int32)) if indices else found

    return pool


def _avg_pool(count):
    def pool(x, size, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        window, strides, pads = _windows(x, size, stride, padding, ceil_mode, count)
        return lax.reduce_window(x, 0.0, lax.add, window, strides, pads) / np.prod(window)

    return pool


def _adaptive_avg_pool(x, size):
    shape = x.shape[: -len(size)]
    for given, wanted in zip(x.shape[-len(size) :], size, strict=True):
        if given % wanted:
            raise NotImplementedError("torch_as_jax has adaptive pools of equal cells only")
        shape += (wanted, given // wanted)
    return x.reshape(shape).mean(range(-2 * len(size) + 1, 0, 2))


def _batch_norm(x, weight, bias, mean, variance, training=False, momentum=0.1, eps=1e-5, *rest):
    if training:
        raise NotImplementedError("torch_as_jax has BatchNorm for evaluation only")
    wide = (-1, *(1,) * (x.ndim - 2))
    found = (x - mean.reshape(wide)) / jnp.sqrt(variance.reshape(wide) + eps)
    found = found if weight is None else found * weight.reshape(wide)
    return (found if bias is None else found + bias.reshape(wide)), mean, variance


def _slice(x, dim=0, start=None, end=None, step=1):
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, min(end, x.shape[dim]) if end else end, step),)]


def _index(x, indices):
    return x[tuple(slice(None) if each is None else each for each in indices)]


def _expand(x, size, implicit=False):
    lead = len(size) - x.ndim
    return jnp.broadcast_to(x, [x.shape[i - lead] if side == -1 else side for i, side in enumerate(size)])


def _squeeze(x, dim=None):
    axes = [axis for axis in _axes(x, dim) or () if x.shape[axis] == 1]
    return jnp.squeeze(x, tuple(axes))


def _clamp(x, min=None, max=None):
    return jax.nn.relu(x) if min == 0 and max is None else jnp.clip(x, min, max)


def _addmm(b, x, w, beta=1, alpha=1):
    return alpha * (x @ w) + beta * b


def _draw(*args, **named):
    raise NotImplementedError("a model that draws numbers, such as by dropout in training")


def _filled(value):
    return lambda x, dtype=None, **rest: jnp.full(x.shape, value, x.dtype if dtype is None else jax_dtype(dtype))


def _scaled(function):
    return lambda x, y, alpha=1: function(x, y if alpha == 1 else alpha * y)


def _divide(x, y, rounding_mode=None):
    return jnp.floor_divide(x, y) if rounding_mode else x / y


_COPY = dict.fromkeys(["clone", "alias", "detach", "contiguous", "lift_fresh", "lift"], lambda x, **rest: x)
_VIEW = dict.fromkeys(["view", "_unsafe_view", "reshape"], lambda x, shape: x.reshape(shape))
_MATMUL = dict.fromkeys(["mm", "bmm", "mv", "dot", "matmul"], jnp.matmul)
_COMPARE = {
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
}
_BITS = {"bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or, "bitwise_not": jnp.bitwise_not}
_SAME = {name: getattr(jnp, name) for name in ("abs", "exp", "log", "sqrt", "tanh", "sin", "cos", "sign", "where")}
_NN = {name: getattr(jax.nn, name) for name in ("relu", "sigmoid", "softplus", "elu", "leaky_relu", "silu")}
OPERATIONS = {
    **_COPY,
    **_VIEW,
    **_MATMUL,
    **_COMPARE,
    **_BITS,
    **_SAME,
    **_NN,
    "softplus": lambda x, beta=1, threshold=20: jax.nn.softplus(beta * x) / beta,
    "gelu": lambda x, approximate="none": jax.nn.gelu(x, approximate=approximate != "none"),
    "add": _scaled(jnp.add),
    "sub": _scaled(jnp.subtract),
    "rsub": _scaled(lambda x, y: y - x),
    "mul": jnp.multiply,
    "div": _divide,
    "neg": jnp.negative,
    "pow": lambda x, y: x**y,
    "addmm": _addmm,
    "linear": lambda x, w, b=None: x @ w.T if b is None else x @ w.T + b,
    "t": lambda x: x.T,
    "transpose": jnp.swapaxes,
    "permute": jnp.transpose,
    "expand": _expand,
    "unsqueeze": lambda x, dim: jnp.expand_dims(x, dim),
    "squeeze": _squeeze,
    "cat": lambda arrays, dim=0: jnp.concatenate(arrays, dim),
    "stack": lambda arrays, dim=0: jnp.stack(arrays, dim),
    "select": lambda x, dim, index: lax.index_in_dim(x, index, dim, keepdims=False),
    "slice": _slice,
    "index": _index,
    "index_select": lambda x, dim, index: jnp.take(x, index, dim),
    "gather": lambda x, dim, index: jnp.take_along_axis(x, index, dim),
    "embedding": lambda weight, indices, *rest: weight[indices],
    "unbind": lambda x, dim=0: [lax.index_in_dim(x, i, dim, keepdims=False) for i in range(x.shape[dim])],
    "sum": _reduce(jnp.sum),
    "mean": _reduce(jnp.mean),
    "prod": _reduce(jnp.prod),
    "amax": _reduce(jnp.max),
    "any": _reduce(jnp.any),
    "all": _reduce(jnp.all),
    "max": _extremum(jnp.max, jnp.argmax),
    "min": _extremum(jnp.min, jnp.argmin),
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "clamp": _clamp,
    "clamp_min": lambda x, low: _clamp(x, low),
    "_softmax": lambda x, dim, half: jax.nn.softmax(x, dim),
    "_log_softmax": lambda x, dim, half: jax.nn.log_softmax(x, dim),
    "convolution": _convolution,
    "max_pool1d": _max_pool(1, indices=False),
    "max_pool2d": _max_pool(2, indices=False),
    "max_pool3d": _max_pool(3, indices=False),
    "max_pool2d_with_indices": _max_pool(2),
    "max_pool3d_with_indices": _max_pool(3),
    "avg_pool1d": _avg_pool(1),
    "avg_pool2d": _avg_pool(2),
    "_adaptive_avg_pool2d": _adaptive_avg_pool,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda x, w, b, m, v, momentum, eps: _batch_norm(x, w, b, m, v, eps=eps),
    "native_dropout": lambda x, p, train: (x, jnp.ones(x.shape, bool)),
    "_to_copy": lambda x, dtype=None, **rest: x if dtype is None else x.astype(jax_dtype(dtype)),
    "ones_like": _filled(1),
    "zeros_like": _filled(0),
    "empty_like": _draw,
}
