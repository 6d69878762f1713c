"""How many of Captum's own tests hold for jaxcam: they run here, with their numbers from jaxcam.

    python -m tests.golden.captum_suite PATH_TO_A_CLONE_OF_CAPTUM        # some minutes; writes captum_suite.json

Captum's tests are not copied: pytest runs those of the clone, whose `attribute` methods are replaced by adapters. An
adapter translates arguments and layouts, never more; it calls jaxcam on the test's PyTorch model (`torch_as_jax`), and
the test's own assertions judge what comes back. It raises `NotExpressible` where jaxcam has no way to say it. Tests that
call no adapter, or look at something else than numbers (`ELSEWHERE`), are not counted.

Layouts. Whatever is explained, inputs or what layers return, is one signal `[n, f, 1]`, cut up again in front of the
model. Other arguments are context if they have a row for each input, and constants if not. An output of several axes is
flattened, `[n, k]`. A model that returns numbers for the batch as a whole explains the whole batch as one image.
"""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxcam
from jaxcam import lrp_rules
from jaxcam._array import Rows
from jaxcam.taps import Network, Tap
from jaxcam.taps.tap import Layer
from tests.golden.torch_as_jax import Stand, as_array, jax_dtype, run
from tests.test_layers import recipes

HERE = Path(__file__).parent
RESULTS = HERE / "captum_suite.json"
OUTCOMES = ("agrees", "differs", "not expressible")
FOLDERS = ("tests/attr", "tests/metrics")
# What looks at something else than a method's numbers, by a word of the test's name.
ELSEWHERE = {
    r"test_(llm|dataloader|data_parallel|jit|hook_removal|class_summarizer|summarizer|stat|interpretable)": "no method",
    r"[Ff]uture": "futures",
    r"show_progress": "the text of a progress bar",
    r"error|wrong_usage|invalid|improper|too_large|creator|repeated_module|reusable_module|missing|min_examples": "errors and warnings",
    r"unchanged|inplace_remov": "what is left of the model",
}


class NotExpressible(Exception):
    """jaxcam has no way to say what a test asks for."""


# --- The model --------------------------------------------------------------------------------------------------------


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


# --- A call of `attribute` ---------------------------------------------------------------------------------------------


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
        self.output, twice = (with_copies(forward, [*self.given, *more], self.n, count) for count in (1, 2))
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
        modules = () if layer is None else several(layer) if isinstance(layer, list) else (layer,)
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
            model.on_host = int(np.size(self.output))
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

    def packed(self, value, dtype=jnp.float32):
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
        is_one = len(signal.shapes) == 1

        def score(output, targets):
            layer = signal.unpack(output)
            if callable(selector):
                picked = run(lambda *tensors: selector(tensors[0] if is_one else tensors), *layer)
            else:
                picked = layer[0][(slice(None), *several(selector))]
            return picked.reshape(len(output), -1).sum(1)

        return score

    def problem(self):
        """A method and what it takes: `method(model, images, targets, score=score)`."""
        if self.method not in METHODS:
            raise NotExpressible(f"no {self.name}")
        function, options = METHODS[self.method](self)
        options |= {"return_delta": True} if self.args.get("return_convergence_delta") and has_delta(function) else {}
        if self.family == "Layer" and self.method not in OF_TAPS:
            function = at_layer(function) if "baselines" in self.args else on_layer(function)
        elif self.family == "Neuron" and self.method not in OF_TAPS:
            function = of_neuron(function, self.neuron)
        if self.method == "GradientShap" and deviation_of(self.args):
            function = with_noise(function, deviation_of(self.args))
        return partial(function, **options)

    def returned(self, found, signal=None):
        """Attributions as Captum shapes them."""
        signal = self.explained[1] if signal is None else signal
        inner = ()
        if self.is_perturbation and isinstance(self.targets, np.ndarray) and self.targets.ndim == 2:
            inner = found.shape[:2] if "Shapley" in self.method else ()
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


def has_delta(function) -> bool:
    return "return_delta" in inspect.signature(function).parameters


def on_layer(function):
    """The method on the upper half of the model."""

    def method(tap, images, targets=None, *, score=jaxcam.score.logit, **options):
        return function(tap.head(images), tap.features(images), targets, score=score, **options)

    return method


def at_layer(function):
    """The same where baselines are of inputs: what the lower half makes of them."""

    def method(tap, images, targets=None, *, score=jaxcam.score.logit, return_delta=False, **options):
        def seen(name, baseline):
            if name == "baselines":  # [m, f, 1], whichever the image
                return jnp.stack([tap.features(jnp.broadcast_to(each, images.shape))[0] for each in baseline])
            if name != "baseline" or baseline.ndim == images.ndim:
                return tap.features(baseline) if name == "baseline" else baseline
            return jnp.stack([tap.features(jnp.broadcast_to(each, images.shape)) for each in baseline[0]], 1)

        options = {name: seen(name, each) for name, each in options.items()}
        options |= {"return_delta": True} if return_delta else {}
        return function(tap.head(images), tap.features(images), targets, score=score, **options)

    return method


def of_neuron(function, score):
    """The method on the lower half, for one of its units."""
    by_neuron = score

    def method(tap, images, targets=None, *, score=None, return_delta=False, **options):
        return function(tap.features, images, 0, score=by_neuron, **options)

    return method


# --- Methods: a function of jaxcam, and what its options are ------------------------------------------------------------


def absolute_saliency(model, images, targets=None, *, score=jaxcam.score.logit):
    """Captum's saliency is not signed."""
    return jnp.abs(jaxcam.saliency(model, images, targets, score=score))


def saliency(call):
    return (absolute_saliency if call.args.get("abs") else jaxcam.saliency), {}


def integrated_gradients(call):
    """Whatever the quadrature: ours is Gauss-Legendre."""
    return jaxcam.integrated_gradients, {"baseline": call.baseline, "num_steps": call.args["n_steps"]} | factor(call)


def factor(call):
    return {"multiply_by_inputs": call.attributor.multiplies_by_inputs}


def gradient_shap(call):
    options = {"baselines": call.baselines, "num_samples": call.args["n_samples"]} | factor(call)
    return jaxcam.expected_gradients, options


def with_noise(function, deviation):
    """Gradient SHAP's noise on the inputs is `smooth_grad` around it, with as many noisy copies as baselines."""

    def method(model, images, targets=None, *, score=jaxcam.score.logit, return_delta=False, **options):
        more = {"deviation": deviation, "num_samples": options["num_samples"], "chunk_size": len(images)}
        more |= {"score": score, "return_delta": return_delta}
        found = jaxcam.smooth_grad(model, images, targets, method=partial(function, **options), **more)
        return (found[0], found[1].mean(1)) if return_delta else found

    return method


def deviation_of(args) -> float:
    deviations = set(several(args["stdevs"]))
    if len(deviations) > 1:
        raise NotExpressible("noise of its own for each input")
    return float(*deviations)


def deep_lift(call):
    if call.args.get("custom_attribution_func"):
        raise NotExpressible("a function of one's own from multipliers to attributions")
    is_several = call.method.endswith("Shap")
    return jaxcam.deep_lift, {"baseline": call.baselines[None] if is_several else call.baseline} | factor(call)


# Captum's alpha1-beta0 rule and gamma rule look at the signs of weights alone, ours at those of contributions.
RULES = {
    "EpsilonRule": lambda rule: lrp_rules.Epsilon(rule.STABILITY_FACTOR),
    "GammaRule": lambda rule: lrp_rules.Gamma(rule.gamma),
    "Alpha1_Beta0_Rule": lambda rule: lrp_rules.ZPlus(),
    "IdentityRule": lambda rule: lambda layer: layer.relevance,
}


def lrp(call):
    names = {name: module for name, module in call.module.named_modules() if name}

    def composite(layer):
        module = next((each for name, each in names.items() if (layer.name or "").endswith(name)), None)
        rule = getattr(module, "rule", None)
        return lrp_rules.Epsilon(1e-9) if rule is None else RULES[type(rule).__name__](rule)

    for module in names.values():
        rule = getattr(module, "rule", None)
        if rule is not None and type(rule).__name__ not in RULES:
            raise NotExpressible("a rule of one's own")
    return jaxcam.lrp, {"composite": composite}


def on_segments(function, *options):
    def of_call(call):
        named = {"n_samples": "num_samples"}
        more = {named[name]: call.args[name] for name in options}
        return function, {"baseline": call.baseline, "segments": call.segments} | more

    return of_call


def shapley_values(call):
    """All sets; as many as their complements."""
    segments = call.segments
    return jaxcam.kernel_shap, {
        "baseline": call.baseline,
        "segments": segments,
        "num_samples": 2 ** len(np.unique(segments)),
    }


def feature_permutation(call):
    """A feature of another row of the batch is a baseline."""
    arrays, signal = call.explained
    segments = call.segments.reshape(-1, call.segments.shape[-1])
    baseline = np.array(signal.pack(arrays))
    for label in np.unique(segments):
        masks = signal.unpack(jnp.asarray(segments == label))
        masks = [mask[0] for mask in masks] if call.whole else masks
        moved = [as_array(call.attributor.perm_func(as_torch(x), as_torch(mask).bool())) if mask.any() else x
                 for x, mask in zip(arrays, masks, strict=True)]  # fmt: skip
        where = np.broadcast_to(segments == label, baseline.shape[:2])
        baseline[where] = np.asarray(signal.pack(moved))[where]
    return jaxcam.feature_ablation, {"baseline": jnp.asarray(baseline), "segments": call.segments}


def lime(call):
    """The width of a kernel and the penalty of a Lasso are inside of objects."""
    width = inspect.getclosurevars(call.attributor.similarity_func).nonlocals.get("kernel_width")
    model = call.attributor.interpretable_model
    kinds = {"SkLearnLasso": 1.0, "SkLearnLinearRegression": 0.0}
    if width is None or type(model).__name__ not in kinds:
        raise NotExpressible(f"LIME with a {type(model).__name__} of one's own")
    alpha = getattr(model, "construct_kwargs", {}).get("alpha", kinds[type(model).__name__])
    function, options = on_segments(jaxcam.lime, "n_samples")(call)
    return function, options | {"kernel_width": width, "alpha": alpha}


def lime_base(call):
    """With the perturbations of Captum's tests, which are those of LIME written out: half of the segments at random."""
    if call.attributor.perturb_func.__name__ not in ("alt_perturb_func", "alt_perturb_generator"):
        raise NotExpressible("LIME with perturbations of one's own")
    return lime(call)


def gradient_x_activation(call):
    return (jaxcam.input_x_gradient if call.attributor.multiplies_by_inputs else jaxcam.saliency), {}


def _none(function):
    return lambda call: (function, {})


# Methods of a tap, for which the page has the code.
def activation(tap, images, targets=None, *, score=None):
    return tap.features(images)


def recipe(name):
    """A function of the page on hidden layers."""

    def of_call(call):
        is_neuron = call.family == "Neuron"
        function = recipes()["neuron_" * is_neuron + name]

        def method(tap, images, targets=None, *, score=None, **options):
            return function(tap, images, targets, **options)

        more = {"neuron": call.neuron} if is_neuron else {}
        return method, {"baseline": call.baseline, "num_steps": call.args["n_steps"]} | more

    return of_call


OF_TAPS = ("Activation", "Conductance", "InternalInfluence")
METHODS = {
    "Activation": _none(activation),
    "Conductance": recipe("conductance"),
    "InternalInfluence": recipe("internal_influence"),
    "Saliency": saliency,
    "Gradient": saliency,
    "InputXGradient": _none(jaxcam.input_x_gradient),
    "GradientXActivation": gradient_x_activation,
    "IntegratedGradients": integrated_gradients,
    "GradientShap": gradient_shap,
    "DeepLift": deep_lift,
    "DeepLiftShap": deep_lift,
    "LRP": lrp,
    "Deconvolution": _none(jaxcam.deconvnet),
    "GuidedBackprop": _none(jaxcam.guided_backprop),
    "FeatureAblation": on_segments(jaxcam.feature_ablation),
    "FeaturePermutation": feature_permutation,
    "ShapleyValueSampling": on_segments(jaxcam.shapley_sampling, "n_samples"),
    "ShapleyValues": shapley_values,
    "Lime": lime,
    "LimeBase": lime_base,
    "KernelShap": on_segments(jaxcam.kernel_shap, "n_samples"),
}
PERTURBATIONS = {
    *("FeatureAblation", "FeaturePermutation", "ShapleyValueSampling", "ShapleyValues", "Lime", "LimeBase", "KernelShap"),
    "Occlusion",
}


# --- Adapters ----------------------------------------------------------------------------------------------------------


def attribute(attributor, **arguments):
    call = Call(attributor, arguments)
    method = call.problem()
    found = method(call.model, call.images, call.targets)
    if not call.args.get("return_convergence_delta"):
        return call.returned(found)
    # Where a method has no deltas, they are what its attributions miss: the score, or its difference.
    found, delta = found if has_delta(method) else (found, found.sum(range(1, found.ndim)) - rise(call))
    return call.returned(found), as_torch(delta).reshape(-1)


def rise(call):
    """`score(image) - score(baseline)`; without a baseline, the score."""

    def score(images):
        output = call.model(images)
        return jaxcam.score.logit(output, jnp.broadcast_to(1 if call.targets is None else call.targets, len(images)))

    return score(call.images) - (score(call.baseline) if "baselines" in call.args else 0)


def of_each_input(function, form, options):
    """Attributions of one input at a time, the others being context."""

    def adapter(attributor, **arguments):
        whole = Call(attributor, arguments)
        found = []
        for i in range(len(whole.inputs)):
            call = Call(attributor, arguments, form, i)
            named = options(call, i)
            values = function(call.model, call.images, call.targets, **named)
            found += several(call.returned(values, call.signal))[:1]
        return tuple(found) if whole.is_tuple else found[0]

    return adapter


def windows(call, i):
    """The window covers every axis of an input, that of channels too."""
    space = call.images.shape[1:-1]
    if not 1 <= len(space) <= 3:
        raise NotExpressible(f"occlusion of {len(space)} axes")

    def of_input(name):
        value = call.args[name]
        value = value[i] if isinstance(value, tuple) and isinstance(value[0], tuple) else value
        value = value[i] if isinstance(value, tuple) and call.is_tuple and len(value) == len(call.inputs) else value
        return (value,) * len(space) if isinstance(value, int) else value or (1,) * len(space)

    return {"window": of_input("sliding_window_shapes"), "stride": of_input("strides"), "baseline": call.baseline}


def cells(call, i=0):
    """How CAM methods see what the `i`th of the layer's tensors is: channels last, and an axis of cells at least."""

    def reshape(packed):
        maps = call.model.network.layer.unpack(packed)[i]
        return maps[:, None] if maps.ndim == 2 else jnp.moveaxis(maps, 1, -1)

    return dataclasses.replace(call.model, reshape=reshape)


def interpolation(call, i):
    call.model = cells(call)
    kinds = {"nearest": "nearest", "bilinear": "linear", "linear": "linear"}
    return {"interpolation": kinds[call.args["interpolate_mode"]]}


def grad_cam(attributor, **arguments):
    """Captum's maps are coarse; without its `attr_dim_summation`, not summed over channels."""
    call = Call(attributor, arguments)
    if call.inputs[0].ndim > 3:  # maps lie on an image, here the first input
        call = Call(attributor, arguments, "channels", 0)
    is_sum, found = call.args["attr_dim_summation"], []
    for i, shape in enumerate(call.model.network.layer.shapes):
        maps = jaxcam.grad_cam(cells(call, i), call.images, call.targets, raw=True if is_sum else "channels")
        maps = maps[:, None] if is_sum else jnp.moveaxis(maps, -1, 1)
        maps = maps[..., 0] if len(shape) == 1 else maps
        found.append(as_torch(jnp.maximum(maps, 0) if call.args["relu_attributions"] else maps))
    return found[0] if len(found) == 1 else tuple(found)


KINDS = {
    "smoothgrad": jaxcam.smooth_grad,
    "smoothgrad_sq": jaxcam.smooth_grad_squared,
    "vargrad": jaxcam.var_grad,
}


def noise_tunnel(tunnel, inputs, **arguments):
    args = with_defaults(ORIGINAL["NoiseTunnel"], tunnel, inputs, **arguments)
    if args["draw_baseline_from_distrib"]:
        raise NotExpressible("a baseline drawn for each noisy copy")
    deviation = deviation_of(args)
    known = inspect.signature(ORIGINAL["NoiseTunnel"]).parameters
    call = Call(tunnel.attribution_method, {"inputs": inputs} | {x: y for x, y in args.items() if x not in known})
    method = call.problem()
    # What has a row for each input, such as a baseline, fits one noisy copy of each at a time.
    options = {"deviation": deviation, "num_samples": args["nt_samples"], "chunk_size": len(call.images)}
    deltas = {"return_delta": True} if call.args.get("return_convergence_delta") else {}
    if deltas:
        method.keywords.pop("return_delta", None)
    found = KINDS[args["nt_type"]](call.model, call.images, call.targets, method=method, **options, **deltas)
    if not deltas:
        return call.returned(found)
    return call.returned(found[0]), as_torch(found[1]).reshape(-1)


ADAPTERS = {
    "NoiseTunnel": noise_tunnel,
    "Occlusion": of_each_input(jaxcam.occlusion, "space", windows),
    "GuidedGradCam": of_each_input(jaxcam.guided_grad_cam, "channels", interpolation),
    "LayerGradCam": grad_cam,
}


# --- Metrics -----------------------------------------------------------------------------------------------------------


def perturbations(call, function, count, baselines=None):
    """What a function of Captum's gives for `count` copies of each input: arrays `[n, count, f, 1]`, one or two."""
    copies = tuple(torch.repeat_interleave(x, count, dim=0) for x in call.given)
    more = () if baselines is None else (several(baselines),)
    more = [tuple(torch.repeat_interleave(x, count, dim=0) if isinstance(x, torch.Tensor) else x for x in each)
            for each in more]  # fmt: skip
    found = function(*(each if call.is_tuple else each[0] for each in (copies, *more)))
    found = found if isinstance(found, tuple) and isinstance(found[0], tuple) or not call.is_tuple else (found,)
    pairs = [several(each) for each in (found if isinstance(found, tuple) else (found,))]
    packed = [call.pack([as_array(x) for x in each]) for each in pairs]
    return [each.reshape(call.n, count, *each.shape[1:]) for each in packed]


def as_function(call, changes):
    """`changes [n, s, f, 1]` as a function of key and image: the key tells the sample, the pixels the image."""
    keys = jax.vmap(lambda sample: jax.random.key_data(jax.random.fold_in(jax.random.key(0), sample)))
    keys = keys(jnp.arange(changes.shape[1]))

    def change(key, image):
        sample = jnp.argmax((keys == jax.random.key_data(key)).all(-1))
        which = jnp.argmin(jnp.abs(call.images - image).sum((1, 2)))
        return changes[which, sample]

    return change


def infidelity(forward_func, perturb_func, inputs, attributions, baselines=None, additional_forward_args=None,
               target=None, n_perturb_samples=10, max_examples_per_batch=None, normalize=False):  # fmt: skip
    """Ours is of local attributions: those of a change that is taken as one unit are divided by the change."""
    given = {"inputs": inputs, "additional_forward_args": additional_forward_args, "target": target}
    call = Call(SimpleNamespace(forward_func=forward_func), given)
    units, changed = perturbations(call, perturb_func, n_perturb_samples, baselines)
    changes = call.images[:, None] - changed
    ratios = jnp.where(changes == 0, 0, units / jnp.where(changes == 0, 1, changes))
    ratio = jnp.take_along_axis(ratios, jnp.abs(ratios).argmax(1, keepdims=True), 1)
    attributions = call.pack([as_array(x) for x in several(attributions)])
    if not np.allclose(attributions[:, None] * (ratio * changes - units), 0, atol=1e-3):
        raise NotExpressible("units of change that are not proportional to the change")
    attributions *= ratio[:, 0]
    options = {"perturbation": as_function(call, changes), "num_samples": n_perturb_samples, "normalize": normalize}
    return as_torch(jaxcam.metrics.infidelity(call.model, call.images, attributions, call.targets, **options))


def sensitivity_max(explanation_func, inputs, perturb_func=None, perturb_radius=0.02, n_perturb_samples=10,
                    norm_ord="fro", max_examples_per_batch=None, **kwargs):  # fmt: skip
    call = Call(explanation_func.__self__, {"inputs": inputs, **kwargs})
    method = call.problem()
    if perturb_func is None or perturb_func.__name__ == "default_perturb_func":
        how: dict[str, Any] = {"radius": perturb_radius}
    else:
        (changed,) = perturbations(call, perturb_func, n_perturb_samples)
        how = {"perturbation": as_function(call, changed - call.images[:, None])}
    explain = partial(method, call.model, targets=call.targets)
    return as_torch(
        jaxcam.metrics.max_sensitivity(
            lambda images: explain(images), call.images, num_samples=n_perturb_samples, **how
        )
    )


ORIGINAL: dict[str, Any] = {}


def replaced(name, original, adapter, calls):
    """The adapter in a method's place."""

    def run_here(attributor, *args, **kwargs):
        calls.append(name)
        bound = inspect.signature(original).bind(attributor, *args, **kwargs)
        _, *given = bound.arguments.items()
        given = {key: value for each in given for key, value in ([each] if each[0] != "kwargs" else each[1].items())}
        return adapter(attributor, **given)

    run_here.__signature__ = inspect.signature(original)
    return run_here


def counted(function, calls):
    def run_here(*args, **kwargs):
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return run_here


# --- Running them ------------------------------------------------------------------------------------------------------


class Plugin:
    """Notes of each test which adapters it called, and how it ended."""

    def __init__(self):
        self.calls, self.found = [], {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        test = item.nodeid
        if call.when == "setup":
            self.calls.clear()
        if call.when == "call" and self.calls and not report.skipped:
            error = call.excinfo and call.excinfo.value
            if error is None:
                outcome, reason = "agrees", ""
            elif isinstance(error, NotExpressible):
                outcome, reason = "not expressible", str(error)
            else:
                outcome, reason = "differs", f"{type(error).__name__}: {error}".split("\n")[0]
            self.found[test] = {"method": self.calls[0], "outcome": outcome, "reason": reason}
            if len(self.found) % 30 == 0:
                jax.clear_caches()
        return report


def patch(calls):
    import captum.attr

    for name in captum.attr.__all__:
        kind = getattr(captum.attr, name)
        if inspect.isclass(kind) and "attribute" in vars(kind) and "LLM" not in name and "DataLoader" not in name:
            ORIGINAL[name] = kind.attribute
    import captum.metrics

    for function in (infidelity, sensitivity_max):
        setattr(captum.metrics, function.__name__, counted(function, calls))
    for name, original in ORIGINAL.items():
        getattr(captum.attr, name).attribute = replaced(name, original, ADAPTERS.get(name, attribute), calls)


def suite(clone: Path, chosen=()) -> dict:
    sys.path.insert(0, str(clone))
    plugin = Plugin()
    patch(plugin.calls)
    files = [str(clone / each) for each in FOLDERS] if not chosen else [str(clone / chosen[0])]
    skipped = "|".join(ELSEWHERE)
    options = ["-q", "--import-mode=importlib", "-c", "/dev/null", f"--rootdir={clone}", "-p", "no:cacheprovider"]
    options += ["--ignore-glob=*data_parallel*", "-p", "no:warnings", "--tb=short", *chosen[1:]]

    class Choice:
        def pytest_collection_modifyitems(self, items):
            items[:] = [item for item in items if not re.search(skipped, item.nodeid)]

    pytest.main([*options, *files], plugins=[plugin, Choice()])
    return plugin.found


if __name__ == "__main__":
    clone, *chosen = sys.argv[1:]
    found = suite(Path(clone).resolve(), chosen)
    print(Counter(each["outcome"] for each in found.values()))
    if not chosen:
        commit = subprocess.run(
            ["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        RESULTS.write_text(json.dumps({"captum": commit, "tests": found}, indent=1))
