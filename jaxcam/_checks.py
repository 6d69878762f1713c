"""The checks that every method makes first, and the sentences of what they find.

Values can only be checked where they are known: outside `jit`, and where this process holds the whole array. Inside
`jit`, a target out of range gives NaN (see `jaxcam.score.logit`), never a wrong picture.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Collection
from operator import ge, gt, le, lt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from jaxcam._errors import shown, unknown

LARGEST = 1e15  # a pixel whose products still fit into float32
SPACE = {1: "[n, length, c]", 2: "[n, h, w, c]", 3: "[n, d, h, w, c]"}


def prepare(model, images, targets) -> tuple[Any, jax.Array, jax.Array | None]:
    """The model as something that can be compiled, images and targets as arrays; or the error of what is wrong."""
    model, images = as_model(model), check_images(images)
    if images.ndim == 3 and _is_one_image(model, images):
        raise ValueError(
            f"images has shape {images.shape}, which is one image, and the model takes several, [n, h, w, c]. "
            "For one image, pass image[None]."
        )
    return model, images, check_targets(model, images, targets)


def as_model(model) -> Any:
    """The model; the method of a tap, such as `tap.features`, as a function that carries the tap's weights."""
    if not callable(model):
        raise TypeError(
            f"model is a {type(model).__name__}; it must be a tap, or any function from images to the model's output."
        )
    return Partial(model.__func__, model.__self__) if inspect.ismethod(model) else model


def check_images(images) -> jax.Array:
    """`images` as a floating-point array `[n, *space, c]` of ordinary numbers, or an error that says what is wrong."""
    if not hasattr(images, "ndim"):
        raise TypeError(f"images is a {type(images).__name__}; it must be an array [n, h, w, c].")
    if not 3 <= images.ndim <= 5:
        hint = " For one signal, pass signal[None]." if images.ndim == 2 else ""
        raise ValueError(
            f"images has shape {images.shape}; it must be {', '.join(SPACE.values())}: one to three axes of space."
            f"{hint}"
        )
    if 0 in images.shape:
        raise ValueError(f"images has shape {images.shape}, which holds no pixels.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images has dtype {images.dtype}; it must be floating-point and normalised as the model expects. "
            "Use `classifier.preprocess(images)`."
        )
    images = as_array(images)
    if is_known(images):
        with jax.ensure_compile_time_eval():  # known values can be looked at even while `jit` traces
            ordinary = np.asarray(_ordinary(images))
        if not ordinary.all():
            bad = ", ".join(map(str, np.flatnonzero(~ordinary)[:5]))
            if np.isfinite(np.asarray(images)).all():
                raise ValueError(
                    f"images holds pixels beyond {LARGEST:g} (in image {bad}), and their products leave float32. "
                    "Normalise the images as the model expects."
                )
            raise ValueError(f"images holds NaN or infinite pixels (in image {bad}).")
    return images


@jax.jit
def _ordinary(images):
    return (jnp.abs(images.astype(jnp.float32)) <= LARGEST).all(range(1, images.ndim))


def check_targets(model, images, targets) -> jax.Array | None:
    """`targets` as `int32[n]` or `int32[n, t]`, or `None` for what each image's own output says."""
    if targets is None:
        return None
    n = images.shape[0]
    if isinstance(targets, str):
        raise TypeError(f"targets is {targets!r}; targets are class indices, such as labels.index({targets!r}).")
    array = targets if hasattr(targets, "dtype") else np.asarray(targets)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"targets has dtype {array.dtype}; targets are class indices, so they must be integers.")
    if array.shape != () and not (array.ndim in (1, 2) and array.shape[0] == n and array.size):
        raise ValueError(
            f"targets has shape {array.shape}; for {n} images it must be one class, an array [{n}], or [{n}, t] for "
            "several classes an image."
        )
    if is_known(array):
        num_classes, values = class_count(outline(model, images)), np.asarray(array)
        if num_classes is not None and (values.min() < 0 or values.max() >= num_classes):
            wrong = values[(values < 0) | (values >= num_classes)].flat[0]
            raise ValueError(
                f"Target {wrong} is out of range: the model has {num_classes} classes, 0 to {num_classes - 1}."
            )
    array = as_array(array, np.int32)
    return jnp.broadcast_to(array, (n,)) if array.ndim == 0 else array


def outline(model, images):
    """The shapes and types of the model's output; nothing is computed."""
    return jax.eval_shape(_forward if _is_tree(model) else model, *((model, images) if _is_tree(model) else (images,)))


def _forward(model, images):  # one function, so that its trace is remembered
    call = type(model).__call__
    return getattr(call, "as_it_is", call)(model, images)  # rewriting it would change no shape


def _is_tree(model) -> bool:
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(model))


def class_count(output) -> int | None:
    """How many classes an output tells apart; a single number tells two, and other outputs are the score's to read."""
    shape = getattr(output, "shape", None)
    if shape is None or len(shape) not in (1, 2):
        return None
    return 2 if shape[1:] in ((), (1,)) else shape[1]


def _is_one_image(model, images) -> bool:
    """Whether `[h, w, c]`, taken for `h` signals, is no batch to the model, and with an axis in front is one."""

    def is_batch(shape):
        try:
            output = outline(model, jax.ShapeDtypeStruct(shape, images.dtype))
        except Exception:  # whatever the model says of it
            return False
        return all(leaf.shape[:1] == shape[:1] for leaf in jax.tree.leaves(output))

    return not is_batch(images.shape) and is_batch((1, *images.shape))


def wrong_channels(model, images) -> ValueError | None:
    """The error for images with another number of channels than the model was made for, if that is what is wrong."""
    given = images.shape[-1]

    def runs(channels):
        try:
            outline(model, jax.ShapeDtypeStruct((*images.shape[:-1], channels), images.dtype))
        except Exception:  # whatever the model says of it
            return False
        return True

    expected = [] if runs(given) else [channels for channels in (3, 1, 4, 2) if channels != given and runs(channels)]
    if not expected:
        return None
    are = "channel" if given == 1 else "channels"
    return ValueError(f"The images have {given} {are}, and the model was made for {expected[0]}.")


def check_baseline(baseline, images, several: bool = False):
    """`baseline` as an array that broadcasts to the images; `None`, which stands for zeros, stays.

    With `several` it may also be a distribution, `[1 or n, m, *space, c]`: `m` baselines, for all images alike or for
    each its own, on an axis after that of images, where copies of an image and its targets lie too.
    """
    if baseline is None or isinstance(baseline, int | float):
        number(baseline=0 if baseline is None else baseline)
        return baseline
    if not hasattr(baseline, "shape"):
        raise TypeError(f"baseline is a {type(baseline).__name__}; it must be a number, an array or None (zeros).")
    shape, whole = baseline.shape, images.shape
    if several and len(shape) == len(whole) + 1:
        fits = 0 not in shape and shape[0] in (1, whole[0]) and shape[2:] == whole[1:]
    else:
        try:
            fits = np.broadcast_shapes(shape, whole) == whole
        except ValueError:
            fits = False
    if not fits:
        sample = ", ".join(map(str, whole[1:]))
        hint = f" Several baselines are [1, m, {sample}], such as others[None]." * several
        raise ValueError(f"baseline has shape {shape}, which does not fit images {whole}.{hint}")
    return all_finite("baseline", as_array(baseline))


def check_baselines(baselines, images):
    """Baselines as an array `[1 or n, m, *space, c]`; a number, and `None`, which stands for noise, stay."""
    if baselines is None or isinstance(baselines, int | float):
        number(baselines=0 if baselines is None else baselines)
        return baselines
    shape = getattr(baselines, "shape", None)
    n, *one = images.shape
    if shape is None or shape not in ((), (*shape[:1], *one), (n, *shape[1:2], *one)) or 0 in shape:
        given = f"is a {type(baselines).__name__}" if shape is None else f"has shape {shape}"
        one = ", ".join(map(str, one))
        raise ValueError(
            f"baselines {given}; it must be a number, an array [m, {one}] or [{n}, m, {one}], or None for normal noise."
        )
    baselines = all_finite("baselines", as_array(baselines))
    return baselines if baselines.ndim in (0, images.ndim + 1) else baselines[None]


def all_finite(name: str, array: jax.Array) -> jax.Array:
    """The array, where none of its values is known to be NaN or infinite."""
    if is_known(array) and not np.isfinite(np.asarray(array)).all():
        raise ValueError(f"{name} holds NaN or infinite values.")
    return array


def filled(baseline, images):
    """A checked baseline at the images' shape and dtype."""
    return jnp.broadcast_to(jnp.asarray(0 if baseline is None else baseline, images.dtype), images.shape)


def is_several(baseline, images) -> bool:
    """Whether a checked baseline is a distribution."""
    return getattr(baseline, "ndim", 0) > images.ndim


def samples_of(baseline, images):
    """The baselines that a checked one stands for, `[1 or n, m, *space, c]`, of the images' dtype."""
    if not is_several(baseline, images):
        return filled(baseline, images)[:, None]
    return jnp.asarray(baseline, images.dtype)


def picked(samples, indices):
    """Those baselines, `[1 or n, len(indices), *space, c]`; a single one stands for all, and is not repeated."""
    return samples if samples.shape[1] == 1 else samples[:, indices]


def random_key(key) -> Any:
    """A key, or the one of a seed."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return _key(jax.device_put(np.uint32(key % 2**32)))
    if not hasattr(key, "dtype"):
        raise TypeError(f"key is {shown(repr(key))}; it must be a whole number, or a key such as jax.random.key(0).")
    return key


_key = jax.jit(jax.random.key)


def positive(**arguments: int | None) -> None:
    """Counts such as `num_steps` and `chunk_size` must be whole numbers from 1; those that may be left open may."""
    for name, value in arguments.items():
        if value is None and name in ("chunk_size", "max_channels", "num_segments", "min_pixels"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {shown(repr(value))}; it must be a whole number, 1 or more.")


def number(infinite: bool = False, above=None, least=None, below=None, most=None, **arguments: Any) -> None:
    """Amounts such as `noise` must be numbers within bounds, finite where infinity means nothing; not known if traced.

    Example:
      >>> number(above=0, most=1, fraction=1.5)
      Traceback (most recent call last):
      ValueError: fraction is 1.5; it must be above 0 and at most 1.
    """
    bounds: list[Any] = [("above", gt, above), ("at least", ge, least), ("below", lt, below), ("at most", le, most)]
    bounds = [each for each in bounds if each[2] is not None]
    for name, value in arguments.items():
        if isinstance(value, Tracer) or (value is None and name in ("deviation", "kernel_scale", "max_sigma")):
            continue
        if isinstance(value, bool) or not (isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()):
            raise TypeError(f"{name} is {shown(repr(value))}; it must be a number.")
        amount: Any = value
        if math.isnan(amount) or (math.isinf(amount) and not infinite):
            raise ValueError(f"{name} is {value}; it must be a {'number' if infinite else 'finite number'}.")
        if not all(holds(amount, bound) for _, holds, bound in bounds):
            wanted = " and ".join(f"{word} {bound}" for word, _, bound in bounds)
            raise ValueError(f"{name} is {value}; it must be {wanted}.")


def choice(known: Collection[str], hint: str = "", **arguments: Any) -> None:
    """What is one of a few words must be a known one."""
    for name, value in arguments.items():
        if not isinstance(value, str) or value not in known:
            raise unknown(name, value, known, hint)


def functions(**arguments: Callable) -> None:
    """What is called later must be callable, or an error would come from deep inside."""
    for name, value in arguments.items():
        if not callable(value):
            raise TypeError(f"{name} is {shown(repr(value))}; it must be a function.")


def sizes(name: str, value, space: tuple[int, ...]) -> tuple[int, ...]:
    """A size for each axis of space, given as one whole number or as one for each."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * len(space)
    if len(values) != len(space):
        raise ValueError(
            f"{name} is {shown(repr(value))}; it must be one whole number, or one for each of {len(space)} axes."
        )
    for each in values:
        positive(**{name: each})
    return tuple(map(int, values))


def as_array(values, dtype=None) -> jax.Array:
    """A JAX array; what comes from NumPy is put on the device openly, as `jax.transfer_guard` wants it."""
    if isinstance(values, jax.Array):
        return values if dtype is None else values.astype(dtype)
    return jax.device_put(np.asarray(values, dtype))


def is_known(array) -> bool:
    return not isinstance(array, Tracer) and getattr(array, "is_fully_addressable", True)
