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

import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
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
from tests.golden.torch_as_jax import Stand, as_array, run

HERE = Path(__file__).parent
RESULTS = HERE / "captum_suite.json"
OUTCOMES = ("agrees", "differs", "not expressible")
FOLDERS = ("tests/attr", "tests/metrics")
# What looks at something else than a method's numbers, by a word of the test's name.
ELSEWHERE = {
    r"test_(llm|dataloader|data_parallel|jit|hook_removal|class_summarizer|summarizer|stat|interpretable)": "no method",
    r"[Ff]uture": "futures",
    r"show_progress": "the text of a progress bar",
    r"error|wrong_usage|invalid": "which errors are raised",
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
        return arrays[0][..., None] if self.form == "space" else jnp.moveaxis(arrays[0], 1, -1)

    def unpack(self, signal):
        """Of `signal`, whose axis of channels may be missing."""
        if self.form != "flat":
            shape = (len(signal), *self.shapes[0])
            return [signal.reshape(shape) if self.form == "space" else jnp.moveaxis(signal, -1, 1)]
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        signal = signal.reshape(len(signal), -1, sum(sizes)).squeeze(1)
        parts = jnp.split(signal, np.cumsum(sizes)[:-1], axis=1)
        return [part.reshape(len(signal), *shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Model(Network):
    """A PyTorch model as a network whose one layer is whatever modules are tapped, as one signal."""

    def __init__(self, forward, signal, dtypes, arguments, whole, modules=(), at_input=False, names=None):
        self.forward, self.signal, self.dtypes, self.arguments, self.whole = forward, signal, dtypes, arguments, whole
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
        if self.whole:
            return jax.vmap(lambda image: self.called(image[None], ())[0].reshape(-1))(images)
        put = None if put is None else split(self.layer.unpack(put), self.counts)
        output = self.called(images, context, put)[0]
        return output.reshape(len(images), -1).astype(jnp.float32)

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


def as_torch(array):
    return torch.tensor(np.array(array))


class Call:
    """What an `attribute` was called with, in terms of jaxcam; its options are read by `METHODS`."""

    def __init__(self, attributor, arguments, form="flat", explained=None):
        self.attributor, self.name = attributor, type(attributor).__name__
        self.family, self.method = re.fullmatch(r"(Layer|Neuron|)(.*)", self.name).groups()
        signature = inspect.signature(ORIGINAL[self.name])
        bound = signature.bind(attributor, **arguments)
        bound.apply_defaults()
        self.args = bound.arguments | bound.arguments.get("kwargs", {})
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
        with torch.no_grad():
            output = forward(*self.given, *more)
        is_row = [x.ndim > 0 and len(x) == self.n for x in self.inputs]
        self.output, self.form = output, form
        shape = getattr(output, "shape", ())
        self.whole = not all(is_row) or not shape or shape[0] != self.n
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
        layer = getattr(self.attributor, "layer", None)
        modules = () if layer is None else several(layer) if isinstance(layer, list) else (layer,)
        at_input = self.args.get("attribute_to_layer_input", self.args.get("attribute_to_neuron_input", False))
        module = getattr(forward, "__self__", forward)
        names = dict(module.named_modules()) if isinstance(module, torch.nn.Module) else {}
        self.module = module
        names = {name: each for name, each in names.items() if name}
        dtypes = tuple(x.dtype for x in chosen)
        model = Model(forward, self.signal, dtypes, tuple(arguments), self.whole, modules, at_input, names)
        self.model = Tap({}, {}, tuple(map(Rows, context)), model, ("layer",) if modules else (), ())
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
        value = several(value(*self.given) if callable(value) else value)
        value = [as_array(each) if isinstance(each, torch.Tensor) else jnp.full(x.shape, each or 0)
                 for each, x in zip(value, self.inputs, strict=True)]  # fmt: skip
        return self.pack(value)

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
        is_shared = all(each.shape[0] == 1 for each in mask) and not self.whole
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
        inner = shape if self.whole else shape[1:]
        count = int(np.prod(inner))
        if target is None:
            if count == 1:
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
        flat = [int(np.ravel_multi_index(several(each), inner)) for each in rows]
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
            function = at_layer(function, options.keys() & {"baseline", "baselines"} and "layer_baselines" not in self.args
                                and self.method != "FeaturePermutation")
        elif self.family == "Neuron" and self.method not in OF_TAPS:
            function = of_neuron(function, self.neuron)
        return partial(function, **options)

    def returned(self, found, signal=None):
        """Attributions as Captum shapes them."""
        signal = self.explained[1] if signal is None else signal
        if self.is_perturbation and isinstance(self.targets, np.ndarray) and self.targets.ndim == 2:
            found = found.reshape(-1, *found.shape[2:])  # each output by itself
        parts = signal.unpack(found)
        if self.is_perturbation and self.whole:  # one number for a column of the batch
            parts = [part[:, 0] for part in parts]
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


def has_delta(function) -> bool:
    return "return_delta" in inspect.signature(function).parameters


def at_layer(function, starts_at_inputs):
    """The method on the upper half of the model; baselines of inputs are what they make of the layer."""

    def method(tap, images, targets=None, *, score=jaxcam.score.logit, return_delta=False, **options):
        if starts_at_inputs:
            options = {name: seen(tap, images, each) if "baseline" in name else each for name, each in options.items()}
        options |= {"return_delta": True} if return_delta else {}
        return function(tap.head(images), tap.features(images), targets, score=score, **options)

    def seen(tap, images, baseline):
        if baseline.ndim == images.ndim and function is not jaxcam.expected_gradients:
            return tap.features(baseline)
        samples = baseline[0] if baseline.ndim > images.ndim else baseline
        found = [tap.features(jnp.broadcast_to(each, images.shape)) for each in samples]
        return jnp.stack(found, 1) if baseline.ndim > images.ndim else jnp.stack([each[0] for each in found])

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
    if call.args["stdevs"] not in (0, 0.0):
        noise = call.args["stdevs"]
        noise = set(several(noise))
        if len(noise) > 1:
            raise NotExpressible("noise of its own for each input")
    options = {"baselines": call.baselines, "num_samples": call.args["n_samples"]} | factor(call)
    return jaxcam.expected_gradients, options


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
        moved = [
            as_array(call.attributor.perm_func(as_torch(x), as_torch(mask).bool()))
            for x, mask in zip(arrays, masks, strict=True)
        ]
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


def _none(function):
    return lambda call: (function, {})


METHODS = {
    "Saliency": saliency,
    "Gradient": saliency,
    "InputXGradient": _none(jaxcam.input_x_gradient),
    "GradientXActivation": _none(jaxcam.input_x_gradient),
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
    "KernelShap": on_segments(jaxcam.kernel_shap, "n_samples"),
}
OF_TAPS = {}
PERTURBATIONS = {
    *("FeatureAblation", "FeaturePermutation", "ShapleyValueSampling", "ShapleyValues", "Lime", "KernelShap"),
    "Occlusion",
}


# --- Adapters ----------------------------------------------------------------------------------------------------------


def attribute(attributor, **arguments):
    call = Call(attributor, arguments)
    method = call.problem()
    found = method(call.model, call.images, call.targets)
    if not call.args.get("return_convergence_delta"):
        return call.returned(found)
    if not has_delta(method):
        raise NotExpressible(f"deltas of {call.name}")
    found, delta = found
    return call.returned(found), as_torch(delta).reshape(-1)


KINDS = {
    "smoothgrad": jaxcam.smooth_grad,
    "smoothgrad_sq": jaxcam.smooth_grad_squared,
    "vargrad": jaxcam.var_grad,
}


def noise_tunnel(tunnel, inputs, **arguments):
    bound = inspect.signature(ORIGINAL["NoiseTunnel"]).bind(tunnel, inputs, **arguments)
    bound.apply_defaults()
    args = bound.arguments
    if args["draw_baseline_from_distrib"]:
        raise NotExpressible("a baseline drawn for each noisy copy")
    deviation = set(several(args["stdevs"]))
    if len(deviation) > 1:
        raise NotExpressible("noise of its own for each input")
    call = Call(tunnel.attribution_method, {"inputs": inputs, **args["kwargs"]})
    method = call.problem()
    # What has a row for each input, such as a baseline, fits one noisy copy of each at a time.
    options = {"deviation": float(*deviation), "num_samples": args["nt_samples"], "chunk_size": len(call.images)}
    deltas = {"return_delta": True} if call.args.get("return_convergence_delta") else {}
    if deltas:
        method.keywords.pop("return_delta", None)
    found = KINDS[args["nt_type"]](call.model, call.images, call.targets, method=method, **options, **deltas)
    if not deltas:
        return call.returned(found)
    return call.returned(found[0]), as_torch(found[1]).reshape(-1)


ADAPTERS = {"NoiseTunnel": noise_tunnel}
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
            jax.clear_caches()
        return report


def patch(calls):
    import captum.attr

    for name in captum.attr.__all__:
        kind = getattr(captum.attr, name)
        if inspect.isclass(kind) and "attribute" in vars(kind) and "LLM" not in name and "DataLoader" not in name:
            ORIGINAL[name] = kind.attribute
    for name, original in ORIGINAL.items():
        getattr(captum.attr, name).attribute = replaced(name, original, ADAPTERS.get(name, attribute), calls)


def suite(clone: Path, chosen=()) -> dict:
    sys.path.insert(0, str(clone))
    plugin = Plugin()
    patch(plugin.calls)
    files = [str(clone / each) for each in FOLDERS] if not chosen else [str(clone / chosen[0])]
    skipped = "|".join(ELSEWHERE)
    options = ["-q", "--import-mode=importlib", "-c", "/dev/null", f"--rootdir={clone}", "-p", "no:cacheprovider"]
    options += ["-p", "no:warnings", "--tb=short", *chosen[1:]]

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
        commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        RESULTS.write_text(json.dumps({"captum": commit, "tests": found}, indent=1))
