"""Captum's methods and metrics by those of jaxcam: a table of functions and options, and what is not of that kind.

An adapter translates arguments, layouts and conventions, never more; each convention is said where it is met.
"""

import copy
import dataclasses
import inspect
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxcam
from jaxcam import lrp_rules
from tests.golden.captum_calls import ORIGINAL, Call, NotExpressible, as_torch, several, with_defaults
from tests.golden.torch_as_jax import as_array
from tests.test_layers import recipes

# --- The halves of a model -------------------------------------------------------------------------------------------


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
            if name == "baselines":  # [m, f, 1]; what the lower half makes of them may depend on the image
                return jnp.stack([tap.features(jnp.broadcast_to(each, images.shape)) for each in baseline], 1)
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


# --- Methods: a function of jaxcam, and what its options are ----------------------------------------------------------


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
    is_several = call.method.endswith("Shap")
    return jaxcam.deep_lift, {"baseline": call.baselines[None] if is_several else call.baseline} | factor(call)


def by_function(call):
    """What a function of the test's makes of multipliers, from each baseline by itself."""
    function, signal, found = call.args["custom_attribution_func"], call.explained[1], []
    for start in call.baselines if call.method.endswith("Shap") else [call.baseline]:
        start = jnp.broadcast_to(start, call.images.shape)
        method = partial(on_half(call, jaxcam.deep_lift), baseline=start, multiply_by_inputs=False)
        multipliers = method(call.model, call.images, call.targets)
        ends = (call.model.features(each) if call.family == "Layer" else each for each in (call.images, start))
        found.append(function(*(tuple(map(as_torch, signal.unpack(each))) for each in (multipliers, *ends))))
    return signal.pack([as_array(sum(each) / len(found)) for each in zip(*found, strict=True)])


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


def alone(function):
    """A method without options."""
    return lambda call: (function, {})


# Methods of a tap, for which the page has the code.
def activation(tap, images, targets=None, *, score=None):
    return tap.features(images)


@cache
def compiled_recipe(name):
    return jax.jit(recipes()[name], static_argnames="num_steps")


def recipe(name):
    """A function of the page on hidden layers."""

    def of_call(call):
        is_neuron = call.family == "Neuron"
        if is_neuron and not call.attributor.multiplies_by_inputs:
            raise NotExpressible("conductance without the factor of the input")
        function = compiled_recipe("neuron_" * is_neuron + name)

        def method(tap, images, targets=None, *, score=None, **options):
            return function(tap, images, targets, **options)

        more = {"neuron": call.neuron} if is_neuron else {}
        return method, {"baseline": call.baseline, "num_steps": call.args["n_steps"]} | more

    return of_call


OF_TAPS = ("Activation", "Conductance", "InternalInfluence")
METHODS = {
    "Activation": alone(activation),
    "Conductance": recipe("conductance"),
    "InternalInfluence": recipe("internal_influence"),
    "Saliency": saliency,
    "Gradient": saliency,
    "InputXGradient": alone(jaxcam.input_x_gradient),
    "GradientXActivation": gradient_x_activation,
    "IntegratedGradients": integrated_gradients,
    "GradientShap": gradient_shap,
    "DeepLift": deep_lift,
    "DeepLiftShap": deep_lift,
    "LRP": lrp,
    "Deconvolution": alone(jaxcam.deconvnet),
    "GuidedBackprop": alone(jaxcam.guided_backprop),
    "FeatureAblation": on_segments(jaxcam.feature_ablation),
    "FeaturePermutation": feature_permutation,
    "ShapleyValueSampling": on_segments(jaxcam.shapley_sampling, "n_samples"),
    "ShapleyValues": shapley_values,
    "Lime": lime,
    "LimeBase": lime_base,
    "KernelShap": on_segments(jaxcam.kernel_shap, "n_samples"),
}


# --- Adapters: functions in the places of `attribute` -----------------------------------------------------------------


def on_half(call, function):
    """The method on the whole model or on that half of it which the test explains."""
    if call.method in OF_TAPS or not call.family:
        return function
    if call.family == "Neuron":
        return of_neuron(function, call.neuron)
    return at_layer(function) if "baselines" in call.args else on_layer(function)


def problem(call):
    """A method and what it takes: `method(model, images, targets, score=score)`."""
    if call.method not in METHODS:
        raise NotExpressible(f"no {call.name}")
    function, options = METHODS[call.method](call)
    options |= {"return_delta": True} if call.args.get("return_convergence_delta") and has_delta(function) else {}
    function = on_half(call, function)
    if call.method == "GradientShap" and deviation_of(call.args):
        function = with_noise(function, deviation_of(call.args))
    return partial(function, **options)


def attribute(attributor, **arguments):
    if isinstance(getattr(attributor, "layer", None), list) and type(attributor).__name__ != "LayerIntegratedGradients":
        return of_each_layer(attributor, **arguments)
    call = Call(attributor, arguments)
    if call.args.get("custom_attribution_func"):
        found = call.returned(by_function(call))
        return (found,) if call.family == "Layer" and not isinstance(found, tuple) else found  # as the function does
    method = problem(call)
    found = method(call.model, call.images, call.targets)
    if not call.args.get("return_convergence_delta"):
        return call.returned(found)
    # Where a method has no deltas, they are what its attributions miss: the score, or its difference.
    found, delta = found if has_delta(method) else (found, found.sum(range(1, found.ndim)) - rise(call))
    return call.returned(found), as_torch(delta).reshape(-1)


def of_each_layer(attributor, **arguments):
    found = []
    for layer in attributor.layer:
        one = copy.copy(attributor)
        one.layer = layer
        found.append(attribute(one, **arguments))
    return tuple(map(list, zip(*found, strict=True))) if arguments.get("return_convergence_delta") else found


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
    method = problem(call)
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


# --- Metrics ---------------------------------------------------------------------------------------------------------


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
    method = problem(call)
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
