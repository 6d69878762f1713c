"""A weight file's bytes as `{name: array}`: safetensors or PyTorch's formats, less the wrappers of checkpoints."""

import json
from typing import Any

import ml_dtypes
import numpy as np

from jaxcam.models import _labels, _pickle

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


def read(data: bytes, name: str) -> tuple[dict[str, Any], dict]:
    """The state dict in a file's bytes, and what `save` wrote beside it."""
    if not data:
        raise ValueError(f"{name} is empty (0 bytes).")
    if data[8:9] == b"{":
        state, header = _read_safetensors(data, name)
    elif data[:2] == b"PK" or data[:1] == b"\x80":
        state, header = _pickle.read(data, name), {}
    else:
        raise ValueError(f"{name} is neither a safetensors file nor a PyTorch file.")
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise ValueError(f"{name} holds a {type(state).__name__}, not a state dict.")
    prefix = "module." if all(str(key).startswith("module.") for key in state) else ""  # of DataParallel
    state = {str(key).removeprefix(prefix): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, header


def _read_safetensors(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict]:
    import safetensors

    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name} is truncated or altered ({error}). Copy or download it again.") from error
    strange = sorted({entry["dtype"] for _, entry in entries} - set(DTYPES))
    if strange:
        raise ValueError(f"{name} has tensors of dtype {', '.join(strange)}; known: {', '.join(DTYPES)}.")
    tensors = {key: np.frombuffer(e["data"], DTYPES[e["dtype"]]).reshape(e["shape"]) for key, e in entries}
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, _labels.header_facts(json.loads(header.get("__metadata__", {}).get("jaxcam", "{}")))
    except Exception as error:  # anybody's file: anything can be in it
        raise ValueError(f"{name} has a header that cannot be understood ({error!r}).") from error
