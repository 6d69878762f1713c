"""PyTorch's file formats, written by hand: what `torch.save` writes, and what it never would."""

import io
import pickle
import struct
import zipfile

import numpy as np

from jaxcam.models import _pickle


class Name:
    """A global, by name: nothing is imported to write it."""

    def __init__(self, module, name):
        self.opcode = f"c{module}\n{name}\n".encode()


class Call:
    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state


class Reference(tuple):
    """A tuple that the pickle hands to `persistent_load`."""


def dump(value) -> bytes:
    """The opcodes that leave `value` on the stack."""
    if isinstance(value, Name):
        return value.opcode
    if isinstance(value, Call):
        built = dump(value.function) + dump(value.arguments) + b"R"
        return built if value.state is None else built + dump(value.state) + b"b"
    if isinstance(value, Reference):
        return dump(tuple(value)) + b"Q"
    if isinstance(value, dict):
        return b"}(" + b"".join(dump(key) + dump(item) for key, item in value.items()) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(dump, value)) + b"t"
    return pickle.dumps(value, 2)[2:-1]  # without the protocol and the stop: strings, numbers, None


KINDS = {np.dtype(dtype): kind for kind, dtype in _pickle.STORAGES.items()}
HOOKS = Call(Name("collections", "OrderedDict"))


def rebuilt(key, array, offset=0, size=None, stride=None, length=None):
    """What a pickle says of a tensor whose storage is the entry `key`."""
    stride = tuple(step // array.itemsize for step in array.strides) if stride is None else stride
    storage = Reference(
        ("storage", Name("torch", KINDS[array.dtype]), key, "cpu", array.size if length is None else length)
    )
    size = array.shape if size is None else size
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), storage, offset, size, stride, False, HOOKS)


def archive(program: bytes, storages=None, compression=zipfile.ZIP_STORED, **entries) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        for key, array in (storages or {}).items():
            file.writestr(f"archive/data/{key}", array.tobytes())
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy(program: bytes, storages=None, little_endian=True, follow=None) -> bytes:
    """The format before PyTorch 1.6: header, pickle, the keys of the storages that follow, and their values."""
    storages = storages or {}
    follow = sorted(storages) if follow is None else follow
    header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little_endian})
    values = [struct.pack("<q", storages[key].size) + storages[key].tobytes() for key in sorted(storages)]
    pickles = [*(pickle.dumps(each, 2) for each in header), b"\x80\x02" + program + b".", pickle.dumps(follow, 2)]
    return b"".join(pickles + values)


def pth(tensors, wrap=lambda state: state, pack=archive, **entries) -> bytes:
    """The file that `torch.save(wrap(tensors), ...)` writes."""
    keys = {name: str(index) for index, name in enumerate(tensors)}
    state = {name: rebuilt(keys[name], array) for name, array in tensors.items()}
    return pack(dump(wrap(state)), {keys[name]: array for name, array in tensors.items()}, **entries)
