"""Compiled programs on disk, which a later process runs without tracing the model again.

A program lies under the digest of all that it is made of: the function, its static arguments by their values, shapes
and types, settings, versions, the device, and every file of this package. Code that is named there belongs to this
package, to what it stands on or to Python; a model or a score by anybody else may change without a sign, so a program
that holds one is not kept; JAX's own cache, which compares traced programs, serves those.
"""

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from types import MethodType

import jax
import numpy as np
from jax.experimental import serialize_executable

from jaxcam import _files
from jaxcam._engine.compiler import unwritten
from jaxcam._engine.memory import budget

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "ml_dtypes")
KNOWN = {"jaxcam", *LIBRARIES, *sys.stdlib_module_names}
SUFFIX, MOST = ".program", 256 * 2**20  # bytes of all; the ones that were not used for longest go first
UNKEPT = OSError, ValueError, TypeError, NotImplementedError, pickle.PicklingError, jax.errors.JaxRuntimeError

folder: Path | None = None  # where programs are kept; nobody else may write there, as what it holds is run
_kept: set[Path] = set()  # by this process, which has them at hand


def run(compiled: Callable, name: str, platform: str | None, static: tuple, arrays: list):
    """`compiled(platform, *static, arrays)`, by the program that is kept of it, or keeping it."""
    path = None if platform is None else _place(name, static, arrays)
    if path is not None and path not in _kept and (program := _found(path)) is not None:
        with suppress(jax.errors.JaxRuntimeError):  # such as no more memory, of which `compiled` knows what to do
            return jax.block_until_ready(program(arrays))
    if path is None or path in _kept:
        return compiled(platform, *static, arrays)
    with unwritten():  # XLA's CPU programs that were read from a file lose parts when they are written
        results = compiled(platform, *static, arrays)
        if (program := compiled.program(platform, *static, arrays)) is not None:
            _keep(path, program)
    _kept.add(path)
    return results


def _place(name, static, arrays) -> Path | None:
    """Where a program is kept, or `None` where it cannot be."""
    device = jax.local_devices()[0]
    if folder is None or "<" in name or jax.process_count() > 1 or not all(_lies_on(each, device) for each in arrays):
        return None
    structure, leaves, *rest = static
    types = [(each.shape, str(each.dtype), getattr(each, "weak_type", False)) for each in arrays]
    spelt = io.BytesIO()
    try:
        _Spelling(spelt).dump((name, jax.tree.unflatten(structure, leaves), rest, types, budget(device)))
    except (pickle.PicklingError, TypeError, AttributeError):  # a lambda, or somebody else's
        return None
    return folder / (hashlib.sha256(spelt.getvalue() + _surroundings(device)).hexdigest() + SUFFIX)


@cache
def _found(path: Path) -> Callable | None:
    """A program that an earlier process kept, a function of the list of arrays."""
    try:
        program = serialize_executable.deserialize_and_load(
            *pickle.loads(path.read_bytes()), execution_devices=jax.local_devices()[:1]
        )
        os.utime(path)
        return program
    except Exception:  # whatever is wrong with the file: the program is made anew
        return None


def _keep(path: Path, program: jax.stages.Compiled) -> None:
    """Keeps a program if it is of a kind that can be; those that were not used for longest go."""
    with suppress(*UNKEPT):
        _files.write(path, pickle.dumps(serialize_executable.serialize(program)))
        size = 0
        for each in sorted(path.parent.glob(f"*{SUFFIX}"), key=lambda each: -each.stat().st_mtime):
            size += each.stat().st_size
            if size > MOST:
                each.unlink()


def _lies_on(array, device) -> bool:
    """On this one alone; typed random keys are none of NumPy's arrays and are not kept."""
    return isinstance(array.dtype, np.dtype) and getattr(array, "devices", lambda: {device})() == {device}


class _Spelling(pickle.Pickler):
    """Pickles values, and by their names the functions and classes of Python, this package and what it stands on."""

    def persistent_id(self, each):
        if not hasattr(each, "__qualname__") or isinstance(each, MethodType):
            return None
        module, names = each.__module__, each.__qualname__
        if module.partition(".")[0] not in KNOWN or attrgetter(names)(sys.modules[module]) is not each:
            raise pickle.PicklingError(f"{each} is somebody else's, or made while the program runs.")
        return f"{module}.{names}"

    def reducer_override(self, each):
        """A dataclass is its fields; Flax gives each module a number beside them."""
        if not is_dataclass(each) or isinstance(each, type):
            return NotImplemented
        return type(each), tuple(getattr(each, field.name) for field in fields(each))


def _surroundings(device) -> bytes:
    """What changes a program beside its parts."""
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    flags = {name: value for name, value in os.environ.items() if name.startswith(("XLA", "LIBTPU", "CUDA"))}
    return repr((_sources(), settings, flags, device.device_kind, device.client.platform_version)).encode()


@cache
def _sources():
    package = Path(__file__).parents[1]
    files = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in package.rglob("*.py"))
    return files, [version(name) for name in LIBRARIES], sys.version
