"""The checks that every method makes, and the engines' way into `jit`.

Values can only be checked where they are known: outside `jit`. Inside it, a target out of range gives NaN (see
`jaxcam.score.logit`), never a wrong picture.
"""

from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._convolutions import fast
from jaxcam.tap import Tap


def check_images(images) -> jax.Array:
    """`images` as a floating-point array `[n, h, w, c]` of finite numbers, or an error that says what is wrong."""
    if not hasattr(images, "ndim"):
        raise TypeError(f"images is a {type(images).__name__}; it must be an array [n, h, w, c].")
    if images.ndim == 3:
        raise ValueError(f"images has shape {images.shape}; it must be [n, h, w, c]. For one image, pass image[None].")
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}; it must be [n, h, w, c].")
    if 0 in images.shape:
        raise ValueError(f"images has shape {images.shape}, which holds no pixels.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images has dtype {images.dtype}; it must be floating-point and normalised as the model expects. "
            "Use `classifier.preprocess(images)`."
        )
    if _is_known(images):
        with jax.ensure_compile_time_eval():  # known values can be looked at even while `jit` traces
            finite = np.asarray(jnp.isfinite(images).all(axis=(1, 2, 3)))
        if not finite.all():
            bad = ", ".join(map(str, np.flatnonzero(~finite)[:5]))
            raise ValueError(f"images holds NaN or infinite pixels (in image {bad}).")
    return jnp.asarray(images)


def check_targets(model, images, targets) -> jax.Array | None:
    """`targets` as `int32[n]`, or `None` for the predicted classes."""
    if targets is None:
        return None
    n = images.shape[0]
    if isinstance(targets, str):
        raise TypeError(f"targets is {targets!r}; targets are class indices, such as labels.index({targets!r}).")
    array = targets if hasattr(targets, "dtype") else np.asarray(targets)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"targets has dtype {array.dtype}; targets are class indices, so they must be integers.")
    if array.shape not in ((), (n,)):
        raise ValueError(f"targets has shape {array.shape}; for {n} images it must be one class or an array [{n}].")
    if _is_known(array):
        output = jax.eval_shape(_forward, model, images) if isinstance(model, Tap) else jax.eval_shape(model, images)
        if getattr(output, "ndim", 0) < 2:
            raise ValueError(f"The model returns {_describe(output)} where methods expect logits [n, k].")
        num_classes, values = output.shape[-1], np.asarray(array)
        if values.min() < 0 or values.max() >= num_classes:
            wrong = values[(values < 0) | (values >= num_classes)].flat[0]
            raise ValueError(
                f"Target {wrong} is out of range: the model has {num_classes} classes, 0 to {num_classes - 1}."
            )
    return jnp.broadcast_to(jnp.asarray(array, jnp.int32), (n,))


def check_baseline(baseline, images) -> jax.Array:
    """`baseline` at the images' shape and dtype; `None` stands for zeros."""
    baseline = jnp.asarray(0 if baseline is None else baseline, images.dtype)
    try:
        return jnp.broadcast_to(baseline, images.shape)
    except ValueError:
        raise ValueError(f"baseline has shape {baseline.shape}, which does not fit images {images.shape}.") from None


def predicted(logits) -> jax.Array:
    """Each image's predicted class, `int32[n]`."""
    if getattr(logits, "ndim", 0) != 2:
        raise ValueError(
            f"The model returns {_describe(logits)}, which has no predicted class. Pass `targets`, or wrap the model "
            "in a function that returns logits [n, k]."
        )
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def engine(function: Callable | None = None, *, static: tuple[str, ...] = ()):
    """Compiles an engine `(model, images, targets, ...)` for taps, whose weights are arguments of the compiled program.

    A score is compared by its function, and the arrays that it carries are arguments too. A plain callable is run as it
    is: nothing is known about what it closes over, so a compiled copy could be stale. `chunk_size=None` stands for what
    suits the device.
    """
    if function is None:
        return partial(engine, static=static)
    fixed = [name for name in static if name != "score"]

    @partial(jax.jit, static_argnames=fixed)
    @wraps(function)
    def compiled(*args, **kwargs):
        options = {name: kwargs.pop(name) for name in fixed if name in kwargs}
        return fast(partial(function, **options))(*args, **kwargs)

    def run(model, images, *args, **kwargs):
        if kwargs.get("chunk_size", 0) is None:
            kwargs["chunk_size"] = suitable_chunk(images)
        if "score" in kwargs and not isinstance(kwargs["score"], jax.tree_util.Partial):
            kwargs["score"] = jax.tree_util.Partial(kwargs["score"])
        return (compiled if isinstance(model, Tap) else function)(model, images, *args, **kwargs)

    return run


def suitable_chunk(images) -> int:
    """Images in one pass: 8 of 224 pixels on a CPU, whose caches more do not fit; elsewhere an eighth of the memory.

    A ResNet-50 keeps about 1,800 bytes per pixel for its backward pass.
    """
    pixels = images.shape[1] * images.shape[2]
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if memory is None:
        return min(32, max(1, 8 * 224**2 // pixels))
    return min(256, max(1, memory // 8 // (1800 * pixels)))


def require_tap(model, method: str) -> None:
    """Methods that look inside the model need to know where."""
    if not isinstance(model, Tap):
        raise TypeError(
            f"{method} needs activations, and the model is a {type(model).__name__}. "
            'Pass a tap: `jaxcam.tap(module, variables, "layer4")`.'
        )


def positive(**arguments: int | None) -> None:
    """Counts such as `num_steps` and `chunk_size` must be whole numbers from 1; `chunk_size` may be left open."""
    for name, value in arguments.items():
        if name == "chunk_size" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more.")


def pair(name: str, value) -> tuple[int, int]:
    """A size given as one whole number or as `(rows, columns)`."""
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} is {value!r}; it must be one whole number or a pair (rows, columns).")
    for each in values:
        positive(**{name: each})
    return int(values[0]), int(values[1])


def _is_known(array) -> bool:
    return not isinstance(array, jax.core.Tracer)


def _describe(output) -> str:
    return f"an array {output.shape}" if hasattr(output, "shape") else f"a {type(output).__name__}"


def _forward(model, images):
    return model(images)  # one function, so that its trace is remembered
