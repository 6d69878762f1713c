"""Weight files as `{name: array}`: of safetensors, PyTorch, Flax and Orbax, less what training wraps around."""

import contextlib
import gc
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcam import _files
from jaxcam._errors import shown
from jaxcam._files import DIGEST, digest
from jaxcam.models import _labels, _pickle
from jaxcam.models._convert import state_dict

DTYPES = {  # of safetensors
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# What training scripts call the state dict in a checkpoint, and what stands before each name in it; averages over the
# training, which are what one evaluates, come first.
WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
WRAPPERS += ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "weights")
PREFIXES = ("model_ema.", "ema_model.", "ema.", "module.", "_orig_mod.", "model.", "net.", "network.")
AVERAGED = "the checkpoint's moving average ({})"
UNUSED = ("num_batches_tracked", "n_averaged")  # counters
ORBAX = "_CHECKPOINT_METADATA"  # a file in each of its folders
MOST_TENSORS = 2000  # a ResNet-152 has 932; a module of as many as a file can name would be traced for ever


def read(data: bytes, name: str) -> tuple[Any, dict]:
    """What a file's bytes hold, and what `save` wrote beside it."""
    if not data:
        raise ValueError(f"{name} is empty (0 bytes).")
    if data[8:9] == b"{":
        return _read_safetensors(data, name)
    if data[:2] == b"PK" or data[:1] == b"\x80":
        return _pickle.read(data, name), {}
    if 0x81 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF):  # a dict in msgpack
        return _read_msgpack(data, name), {}
    raise ValueError(f"{name} is neither a safetensors file nor a PyTorch file nor Flax's msgpack.")


def unwrapped(state: Any, name: str) -> tuple[dict[str, Any], str | None]:
    """The state dict in what a file holds, without prefixes and counters; and which average it is, if it is one."""
    averaged = None
    while isinstance(state, dict) and (found := [key for key in WRAPPERS if _holds_tensors(state.get(key))]):
        wrapper = found[0]
        state = state[wrapper]
        averaged = averaged or (wrapper if "ema" in wrapper else None)
    if not isinstance(state, dict):
        raise ValueError(f"{name} holds a {type(state).__name__}, not a state dict.")
    state = {key if isinstance(key, str) else shown(key): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.endswith(UNUSED)}
    while state and all(key.startswith(PREFIXES) for key in state):
        prefix = next(each for each in PREFIXES if any(key.startswith(each) for key in state))
        averaged = averaged or (prefix if "ema" in prefix else None)
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if len(state) > MOST_TENSORS:
        raise ValueError(f"{name} names {len(state):,} tensors; the networks of jaxcam have at most {MOST_TENSORS:,}.")
    return state, AVERAGED.format(averaged) if averaged else None


def _holds_tensors(value: Any) -> bool:
    """Whether it is a dict that has a tensor, at some depth."""
    return isinstance(value, dict) and any(hasattr(each, "shape") or _holds_tensors(each) for each in value.values())


def _read_msgpack(data: bytes, name: str) -> dict[str, np.ndarray]:
    from flax.serialization import msgpack_restore

    try:
        tree = msgpack_restore(data)
    except (Exception, MemoryError) as error:  # damaged bytes can raise anything
        raise ValueError(f"{name} is truncated or altered ({shown(error)}). Copy or download it again.") from error
    return _of_variables(tree, name)


@contextlib.contextmanager
def _unheard():
    """Orbax reports a damaged folder in many voices: in logs, and later by what its tasks had still to say."""
    level, hooks = logging.root.manager.disable, (sys.excepthook, sys.unraisablehook)
    logging.disable(logging.CRITICAL)
    try:
        yield
    except BaseException:
        sys.excepthook = sys.unraisablehook = lambda *_: None
        time.sleep(0.1)
        gc.collect()
        raise
    finally:
        logging.disable(level)
        sys.excepthook, sys.unraisablehook = hooks


def read_orbax(folder: Path) -> dict[str, np.ndarray]:
    """The state dict of the variables that Orbax, or `jaxcam.train`, saved in a folder."""
    from orbax.checkpoint import v1 as ocp

    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):  # a pipe in it would be waited for
            raise ValueError(f"{folder} is not a whole Orbax checkpoint of arrays: {shown(path.name)} is no file.")
    if (folder / DIGEST).is_file() and _files.read(folder / DIGEST, 100).decode("ascii", "replace") != digest(folder):
        raise ValueError(f"{folder} is not a whole Orbax checkpoint of arrays: it was altered since it was written.")
    try:
        with _unheard():
            tree = ocp.load(str(folder.absolute()))
    except (Exception, MemoryError) as error:
        message = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{folder} is not a whole Orbax checkpoint of arrays ({shown(message)}).") from error
    return _of_variables(tree, str(folder))


def _of_variables(tree: Any, name: str) -> dict[str, np.ndarray]:
    """Variables, or a training state that has their collections; nested, or with dotted names as `jaxcam.train`'s."""
    flat = {path: leaf for path, leaf in _leaves(tree, ()) if path[0] in ("params", "batch_stats")}
    if not any(path[0] == "params" for path in flat):
        raise ValueError(f'{name} holds no Flax variables: there is no "params" in it.')
    try:
        return state_dict(unflatten_dict(flat))
    except Exception as error:  # a kernel of a vector's shape, a name that is one and also begins others
        raise ValueError(f"{name} holds variables that no network has ({shown(error)}).") from error


def _leaves(node: Any, path: tuple[str, ...]):
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, (*path, *str(key).split(".")))
    elif path and hasattr(node, "shape"):
        yield path, np.asarray(node)


def _read_safetensors(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict]:
    import safetensors

    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name} is truncated or altered ({shown(error)}). Copy or download it again.") from error
    strange = sorted({entry["dtype"] for _, entry in entries} - set(DTYPES))
    if strange:
        raise ValueError(f"{name} has tensors of dtype {shown(', '.join(strange))}; known: {', '.join(DTYPES)}.")
    tensors = {key: np.frombuffer(e["data"], DTYPES[e["dtype"]]).reshape(e["shape"]) for key, e in entries}
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, _labels.header_facts(json.loads(header.get("__metadata__", {}).get("jaxcam", "{}")))
    except Exception as error:  # anybody's file: anything can be in it
        raise ValueError(f"{name} has a header that cannot be understood ({shown(error)}).") from error
