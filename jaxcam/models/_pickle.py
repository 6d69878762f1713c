"""PyTorch's zip files (`.pth`, `.bin`), read without PyTorch and without trust.

A pickle is a program. Here it may build dicts, lists, tuples, strings, numbers and tensors: each global that it names
is looked up in a table, and any other is refused by name, so nothing else is ever imported or called. A tensor is a
view of a storage in the archive, and its extent is checked in exact integers before NumPy sees it.
"""

import io
import math
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
RESAVE = "Where torch is installed, save the state dict alone: torch.save(model.state_dict(), 'new.pth')"
CONVERT = "Where torch is installed, convert it: torch.save(torch.load(OLD, weights_only=True), NEW)"


class _Refusal(ValueError):
    """What the file asks for is not granted; as opposed to a file that cannot be read."""


class _Dict(dict):
    """Stands for OrderedDict, and drops the attributes that torch hangs on a state dict (`_metadata`)."""

    def __setstate__(self, state):
        pass


def read(data: bytes, name: str) -> Any:
    """The object that `torch.save` wrote into `data`, with NumPy arrays for tensors.

    Args:
      data: the file's bytes.
      name: how errors call the file.

    Raises:
      ValueError: the file is in PyTorch's format of before version 1.6, is truncated or altered, names a global that is
        not one of a tensor's, or has a tensor that exceeds its storage.

    Example:
      >>> read(pickle.dumps([1, 2]), "old.pth")
      Traceback (most recent call last):
      ValueError: old.pth is a bare pickle, the format of PyTorch before 1.6, which is not read here. Where torch is \
installed, convert it: torch.save(torch.load(OLD, weights_only=True), NEW).
    """
    if data[:1] == b"\x80":
        raise ValueError(
            f"{name} is a bare pickle, the format of PyTorch before 1.6, which is not read here. {CONVERT}."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Archive(archive).load()
    except _Refusal as error:
        raise ValueError(f"{name} is refused: {error}.") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} is truncated or altered ({error}). Copy or download it again.") from error


class _Archive:
    """One zip file: its pickle, and its storages as they are asked for."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        pickles = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
        if len(pickles) != 1:
            raise _Refusal(f"a PyTorch file has one data.pkl, but this zip file has {len(pickles)}")
        self.root = pickles[0].removesuffix("data.pkl")
        self.storages = {}

    def load(self):
        if f"{self.root}byteorder" in self.archive.namelist() and self._entry("byteorder") != b"little":
            raise _Refusal("it was written on a big-endian machine")
        # Made anew for each file: a pickle can set attributes on what it is given.
        known = {
            ("collections", "OrderedDict"): _Dict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _tensor(*arguments[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            **{("torch", kind): kind for kind in STORAGES},
        }
        return _Unpickler(io.BytesIO(self._entry("data.pkl")), known, self.storage).load()

    def _entry(self, name: str) -> bytes:
        entry = self.archive.getinfo(self.root + name)
        if entry.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a few bytes could become gigabytes
            raise _Refusal(f"its entry {name} is compressed, which PyTorch's files are not. {RESAVE}")
        return self.archive.read(entry)

    def storage(self, reference) -> np.ndarray:
        tag, kind, key, _, length = reference
        if tag != "storage" or kind not in STORAGES:
            raise _Refusal(f"it asks for {tag!r} of kind {kind!r}, which is not a tensor's storage")
        if key not in self.storages:
            values = np.frombuffer(self._entry(f"data/{key}"), STORAGES[kind])
            if len(values) != length:
                raise _Refusal(f"its storage {key} has {len(values)} elements instead of {length}")
            self.storages[key] = values
        return self.storages[key]


class _Unpickler(pickle.Unpickler):
    """Finds globals only in the table `known`."""

    def __init__(self, file, known: dict, storage):
        super().__init__(file)
        self.known, self.storage = known, storage

    def persistent_load(self, reference):
        return self.storage(reference)

    def find_class(self, module, name):
        if (module, name) not in self.known:
            raise _Refusal(
                f"it asks for {module}.{name}, which is not part of a state dict, and was not run. "
                f"If you trust the file: {RESAVE[0].lower()}{RESAVE[1:]}"
            )
        return self.known[module, name]


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    """The view of `storage` at `offset`; sizes and strides count elements, as in torch."""
    numbers = (offset, *size, *stride)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(size) != len(stride):
        raise _Refusal(f"it has a tensor of offset {offset}, size {size} and stride {stride}, which cannot be")
    count = math.prod(size)
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    # More elements than the storage has: a tensor of stride 0, which could fill the memory.
    if count > len(storage) or (count and last >= len(storage)):
        raise _Refusal(
            f"it has a tensor of offset {offset}, size {size} and stride {stride}, which exceeds its storage of "
            f"{len(storage)} elements"
        )
    itemsize = storage.itemsize
    # An empty tensor may carry any offset and stride; torch does not look at them either.
    offset, stride = (offset, stride) if count else (0, (0,) * len(size))
    return np.ndarray(size, storage.dtype, storage, offset * itemsize, [step * itemsize for step in stride])
