"""What a test of Captum's asks for, in terms of jaxcam: model, images, targets, baselines, segments; and the way back.

Whatever is explained, inputs or what layers return, is one signal `[n, f, 1]`, cut up again in front of the model.
Other arguments are context if they have a row for each input, and constants if not. An output of several axes is
flattened, `[n, k]`. A model whose outputs belong to the batch as a whole takes the whole batch as one image.
"""

import inspect
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.tree_util import Partial

from jaxcam._array import Rows
from jaxcam.taps import Network, Tap
from jaxcam.taps.tap import Layer
from tests.golden.torch_as_jax import Stand, as_array, jax_dtype, run

ORIGINAL: dict[str, Any] = {}  # the `attribute` of each of Captum's classes
PERTURBATIONS = {
    *(
        "FeatureAblation",
        "FeaturePermutation",
        "ShapleyValueSampling",
        "ShapleyValues",
        "Lime",
        "LimeBase",
        "KernelShap",
    ),
    "Occlusion",
}


class NotExpressible(Exception):
    """jaxcam has no way to say what a test asks for."""


# --- The model -------------------------------------------------------------------------------------------------------


class Signal(NamedTuple):
    """Tensors `[n, *shape]` as one array, and back."""

    shapes: tuple
    form: str = "flat"

    def pack(self, arrays):
        arrays = [jnp.asarray(x).astype(jnp.float32) for x in arrays]
        if self.form == "flat":  # [n, f, 1]
            rows = arrays[0].shape[: arrays[0].ndim - len(self.shapes[0])] or (1,)
            return jnp.concatenate([x.reshape(*rows, -1) for x in arrays], -1)[..., None]
        if self.form == "space":
            return (arrays[0] if self.shapes[0] else arrays[0][:, None])[..., None]
        return jnp.moveaxis(arrays[0], 1, -1)

    def unpack(self, signal):
        """Of `signal`, whose axis of channels may be missing."""
        if self.form != "flat":
            is_space = self.form == "space"
            return [signal.reshape(len(signal), *self.shapes[0]) if is_space else jnp.moveaxis(signal, -1, 1)]
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        signal = signal.reshape(len(signal), -1, sum(sizes)).squeeze(1)
        parts = jnp.split(signal, np.cumsum(sizes)[:-1], axis=1)
        return [part.reshape(len(signal), *shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Model(Network):
    """A PyTorch model as a network whose one layer is whatever modules are tapped, as one signal."""

    def __init__(self, forward, signal, dtypes, arguments, whole, modules=(), at_input=False, names=None):
        self.forward, self.signal, self.arguments, self.whole, self.on_host = forward, signal, arguments, whole, 0
        self.torch_dtypes, self.dtypes = dtypes, [jax_dtype(each) for each in dtypes]
        self.modules, self.at_input, self.names = modules, at_input, names
        self.layer, self.counts = None, None  # of what modules return, once it is known

    @property
    def key(self):
        """What makes two of them the same, so that a program is compiled once."""
        arguments = tuple((kind, str(i.tolist() if hasattr(i, "tolist") else i)) for kind, i in self.arguments)
        return self.forward, self.signal, tuple(self.torch_dtypes), arguments, self.whole, self.modules, self.at_input

    def __eq__(self, other):
        return isinstance(other, Model) and self.key == other.key

    def __hash__(self):
        return hash(self.key)

    def run(self, variables, images, inputs, options, visit, rows):
        if not self.modules:
            return self.outputs(images, inputs.placed), {}
        _, features = self.called(images, inputs.placed)
        packed = self.layer.pack(sum(features, ()))

        def call():
            return packed

        changed, kept = visit(Layer("layer", call, call, set), (), {}, rows)
        return self.outputs(images, inputs.placed, changed), {"layer": [kept]}

    def outputs(self, images, context, put=None):
        """`[n, k]`, numbers."""
        if self.on_host:  # what computes with numbers of Python's is no JAX
            shape = jax.ShapeDtypeStruct((len(images), self.on_host), jnp.float32)
            return jax.pure_callback(self.numbers, shape, images, vmap_method="sequential")
        if self.whole:
            return jax.vmap(lambda image: self.called(image[None], ())[0].reshape(-1))(images)
        put = None if put is None else split(self.layer.unpack(put), self.counts)
        output = self.called(images, context, put)[0]
        return output.reshape(len(images), -1).astype(jnp.float32)

    def numbers(self, images):
        """The model's own, image by image."""
        sizes, found = [int(np.prod(shape)) for shape in self.signal.shapes], []
        for image in torch.from_numpy(np.array(images)).reshape(len(images), -1):
            parts = zip(image.split(sizes), self.signal.shapes, self.torch_dtypes, strict=True)
            explained = [part.reshape(shape).to(dtype) for part, shape, dtype in parts]
            found.append(self.forward(*(explained[i] if kind == "explained" else i for kind, i in self.arguments)))
        return np.array(found, np.float32).reshape(len(images), -1)

    def called(self, images, context, put=None):
        explained = [x.astype(dtype) for x, dtype in zip(self.signal.unpack(images), self.dtypes, strict=True)]
        explained = [x[0] for x in explained] if self.whole else explained
        places = {"explained": explained, "context": context}
        args = [places[kind][i] if kind in places else i for kind, i in self.arguments]
        hooks, kept = watched(self.modules, self.at_input, put)
        output = run(self.forward, *args, hooks=hooks, modules=self.names)
        return jnp.asarray(output, jnp.float32), [kept[i] for i in range(len(self.modules)) if i in kept]


def split(values, counts):
    values = iter(values)
    return [[next(values) for _ in range(count)] for count in counts]


def watched(modules, at_input, put=None):
    """Hooks on modules, and what they keep: the tensors that each returns or takes. `put` takes their places."""
    kept = {}

    def seen(i, tensors):
        is_one = isinstance(tensors, torch.Tensor)
        kept[i] = tuple(as_array(each) for each in ([tensors] if is_one else tensors))
        if put is not None:
            return Stand(put[i][0]) if is_one else tuple(map(Stand, put[i]))
        return None

    def hook(i):
        return (lambda module, args: seen(i, args)) if at_input else (lambda module, args, output: seen(i, output))

    return [(module, at_input, hook(i)) for i, module in enumerate(modules)], kept


# --- A call of `attribute` -------------------------------------------------------------------------------------------


def several(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def with_defaults(function, *args, **kwargs) -> dict:
    """All arguments by name, those of `**kwargs` among them."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return {name: each for name, each in bound.arguments.items() if name != "kwargs"} | bound.arguments.get(
        "kwargs", {}
    )


def with_copies(forward, args, n: int, count: int):
    """The output for `count` copies of the batch, which says whether an output belongs to an input."""
    is_row = [isinstance(x, torch.Tensor) and x.ndim > 0 and len(x) == n for x in args]
    with torch.no_grad():
        return forward(*(torch.cat([x.detach()] * count) if row else x for x, row in zip(args, is_row, strict=True)))


def is_float(value) -> bool:
    return isinstance(value, float) or (isinstance(value, torch.Tensor) and value.is_floating_point())


def as_torch(array):
    return torch.tensor(np.array(array))


class Call:
    """What an `attribute` was called with, in terms of jaxcam; its options are read by `METHODS`."""

    def __init__(self, attributor, arguments, form="flat", explained=None):
        self.attributor, self.name = attributor, type(attributor).__name__
        self.family, self.method = re.fullmatch(r"(Layer|Neuron|)(.*)", self.name).groups()
        self.family = "Layer" if self.name == "InternalInfluence" else self.family
        self.args = with_defaults(ORIGINAL[self.name], attributor, **arguments) if self.name in ORIGINAL else arguments
        self.given = several(self.args["inputs"])
        self.is_tuple = isinstance(self.args["inputs"], tuple)
        more = self.args.get("additional_forward_args")
        more = () if more is None else several(more) if isinstance(more, tuple) else (more,)
        self.inputs = [as_array(x) for x in self.given]
        self.n = len(self.inputs[0]) if self.inputs[0].ndim else 1
        self.picked = range(len(self.inputs)) if explained is None else (explained,)
        self.prepare(more, form)

    def prepare(self, more, form):
        forward = getattr(self.attributor, "forward_func", None) or self.attributor.model
        self.output = with_copies(forward, [*self.given, *more], self.n, 1)
        try:
            twice = with_copies(forward, [*self.given, *more], self.n, 2)
        except RuntimeError:  # as it holds labels of this very batch
            twice = None
        is_row = all(x.ndim > 0 and len(x) == self.n for x in self.inputs)
        self.whole = not is_row or getattr(twice, "shape", ())[:1] != (2 * self.n,)
        arguments, context = [], []
        for i, x in enumerate([*self.inputs, *more]):
            if i in self.picked:
                arguments.append(("explained", self.picked.index(i)))
            elif isinstance(x, jax.Array | torch.Tensor) and x.ndim and len(x) == self.n and not self.whole:
                arguments.append(("context", len(context)))
                context.append(x if isinstance(x, jax.Array) else as_array(x))
            else:
                arguments.append(("constant", x))
        chosen = [self.inputs[i] for i in self.picked]
        self.signal = Signal(tuple(x.shape if self.whole else x.shape[1:] for x in chosen), form)
        self.images = self.pack(chosen)
        if not self.images.size:
            raise NotExpressible("an input without numbers")
        layer = getattr(self.attributor, "layer", getattr(getattr(self.attributor, "grad_cam", None), "layer", None))
        modules = () if layer is None else tuple(layer) if isinstance(layer, list) else (layer,)
        at_input = self.args.get("attribute_to_layer_input", self.args.get("attribute_to_neuron_input", False))
        module = getattr(forward, "__self__", forward)
        names = dict(module.named_modules()) if isinstance(module, torch.nn.Module) else {}
        self.module = module
        names = {name: each for name, each in names.items() if name}
        baselines = self.args.get("baselines")
        baselines = several(baselines) if isinstance(baselines, tuple) else (baselines,) * len(self.inputs)
        dtypes = [torch.float32 if is_float(each) else x.dtype for each, x in zip(baselines, self.given, strict=False)]
        dtypes = [dtypes[i] for i in self.picked]
        model = Model(forward, self.signal, dtypes, arguments, self.whole, modules, at_input, names)
        self.model = Tap({}, {}, tuple(map(Rows, context)), model, ("layer",) if modules else (), ())
        try:
            jax.eval_shape(lambda images: model.outputs(images, context), self.images)
        except NotImplementedError as error:
            if not (self.is_perturbation and self.whole):
                raise NotExpressible(str(error)) from error
            model.on_host = getattr(self.output, "numel", lambda: 1)()
        if modules:
            if self.whole:
                raise NotExpressible("a layer of a model whose outputs belong to no input")
            _, self.features = model.called(self.images, context)
            model.counts = [len(each) for each in self.features]
            model.layer = Signal(tuple(x.shape[1:] for x in sum(self.features, ())))

    def pack(self, arrays):
        return self.signal.pack(arrays)

    @property
    def explained(self):
        """The arrays that are explained, and their layout."""
        if self.family == "Layer":
            return list(sum(self.features, ())), self.model.network.layer
        return [self.inputs[i] for i in self.picked], self.signal

    def packed(self, value):
        """What was given for each explained tensor, of one row or as many as there are, as a signal."""
        arrays, signal = self.explained
        values = several(value) if isinstance(value, tuple) else (value,) * len(arrays)
        values = [as_array(each) if isinstance(each, torch.Tensor) else jnp.asarray(each or 0) for each in values]
        return signal.pack([jnp.broadcast_to(each, x.shape) for each, x in zip(values, arrays, strict=True)])

    @property
    def baseline(self):
        name = "layer_baselines" if "layer_baselines" in self.args else "baselines"
        value = self.args[name]
        if self.family == "Layer" and name == "baselines":  # of the inputs, whichever layer is explained
            values = several(value) if isinstance(value, tuple) else (value,) * len(self.inputs)
            values = [as_array(each) if isinstance(each, torch.Tensor) else jnp.asarray(each or 0) for each in values]
            return self.pack([jnp.broadcast_to(x, y.shape) for x, y in zip(values, self.inputs, strict=True)])
        if isinstance(value, tuple) and len(self.picked) < len(value):
            value = value[self.picked[0]]
        return self.packed(value)

    @property
    def baselines(self):
        """A distribution, `[m, f, 1]`."""
        value = self.args["baselines"]
        if callable(value):
            value = value(self.args["inputs"]) if inspect.signature(value).parameters else value()
        assert all(isinstance(each, torch.Tensor) for each in several(value)), "a distribution is a tensor"
        return self.pack([as_array(each) for each in several(value)])

    @property
    def segments(self):
        """Labels from zero, `[f]` or `[n, f]`."""
        arrays, signal = self.explained
        mask = self.args.get("layer_mask", self.args.get("feature_mask"))
        if mask is None:  # every number of a row by itself
            sizes = [int(np.prod(x.shape[1:])) for x in arrays]
            starts = np.cumsum([0, *sizes])
            mask = tuple(torch.arange(a, a + size).reshape(1, *x.shape[1:])
                         for a, size, x in zip(starts, sizes, arrays, strict=False))  # fmt: skip
        mask = several(mask)
        is_shared = all(each.ndim == 0 or each.shape[0] == 1 for each in mask) and not self.whole
        labels = [jnp.broadcast_to(as_array(each), x.shape) for each, x in zip(mask, arrays, strict=True)]
        labels = np.asarray(signal.pack(labels))[..., 0].astype(int)
        labels = labels - labels.min()
        return labels[0] if is_shared or self.whole else labels

    @property
    def targets(self):
        """Indices into the flattened output; `None` where it is one number, which then is explained itself."""
        target, shape = self.args.get("target"), tuple(getattr(self.output, "shape", ()))
        if self.family == "Neuron" and self.method != "Conductance":
            return 0
        inner = shape[1:] if not self.whole or shape[:1] == (1,) else shape
        count = int(np.prod(inner))
        if target is None:
            if count == 1 or self.method == "Activation":
                return None
            if not self.is_perturbation:
                raise NotExpressible("no target for several outputs")
            return np.broadcast_to(np.arange(count), (1 if self.whole else self.n, count))
        if count == 1:
            return None
        if isinstance(target, torch.Tensor):
            target = target.reshape(-1).tolist()
            target = target[0] if len(target) == 1 else target
        rows = target if isinstance(target, list) else [target]
        flat = [int(np.ravel_multi_index((*several(each), *(0 for _ in inner))[: len(inner)], inner)) for each in rows]
        return flat[0] if len(flat) == 1 else np.asarray(flat)

    @property
    def is_perturbation(self) -> bool:
        return self.method in PERTURBATIONS

    @property
    def neuron(self):
        """The score of a neuron, which may be a slice of a layer or a function of it."""
        selector, signal = self.args["neuron_selector"], self.model.network.layer
        if callable(selector):
            return Partial(partial(of_neurons, signal, selector))
        index = several(selector)
        if all(isinstance(each, int) for each in index) and len(index) == len(signal.shapes[0]):
            place = np.ravel_multi_index(index, signal.shapes[0], mode="wrap")  # as an array: compiled once for all
            return Partial(of_place, jnp.int32(place))
        return Partial(partial(of_neurons, signal, lambda layer: layer[(slice(None), *index)]))

    def returned(self, found, signal=None):
        """Attributions as Captum shapes them."""
        signal = self.explained[1] if signal is None else signal
        inner = ()
        if self.is_perturbation and isinstance(self.targets, np.ndarray) and self.targets.ndim == 2:
            inner = found.shape[:2] if "Shapley" in self.method and not self.whole else ()
            found = found.reshape(-1, *found.shape[2:])  # each output by itself
        if not self.args.get("return_input_shape", self.method != "LimeBase"):
            return as_torch(self.of_labels(found))
        parts = signal.unpack(found)
        parts = [part.reshape(*inner, *part.shape[1:]) for part in parts] if inner else parts
        if self.is_perturbation and self.whole:  # one number for a column of the batch
            parts = [part[:, 0] if part.shape[1] else jnp.zeros((1, *part.shape[2:])) for part in parts]
        elif self.whole:
            parts = [part[0] for part in parts]
        parts = [as_torch(part) for part in parts]
        if self.is_perturbation:  # of the output's type
            dtype = getattr(self.output, "dtype", torch.float64 if isinstance(self.output, float) else torch.int64)
            parts = [part.to(dtype) for part in parts]
        if self.family == "Layer" and signal is self.model.network.layer:
            layers = [each[0] if len(each) == 1 else tuple(each) for each in split(parts, self.model.network.counts)]
            return layers[0] if len(layers) == 1 and not isinstance(self.attributor.layer, list) else layers
        return tuple(parts) if self.is_tuple else parts[0]

    def of_labels(self, found):
        """One number for each segment."""
        labels = np.broadcast_to(self.segments, found.shape)
        count = self.args.get("num_interp_features", labels.max() + 1)
        known = [[np.flatnonzero(row == label)[:1] for label in range(count)] for row in labels]
        return np.array([[float(row[place[0]]) if len(place) else 0 for place in places]
                         for row, places in zip(np.asarray(found), known, strict=True)], np.float32)  # fmt: skip


def of_place(place, output, targets):
    return output.reshape(len(output), -1)[:, place]


def of_neurons(signal, selector, output, targets):
    """What `selector` makes of a layer, summed; of each row by itself, where Captum's may sum over the batch."""

    def of_row(*layer):
        tensors = [each[None] for each in layer]
        return run(lambda *tensors: selector(tensors[0] if len(tensors) == 1 else tensors), *tensors).sum()

    return jax.vmap(of_row)(*signal.unpack(output))
