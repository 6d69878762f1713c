"""On eight devices, every method does an eighth of the work on each, and none waits for another."""

import re
import socket
import subprocess
import sys
from dataclasses import replace
from inspect import signature

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

N = 8
ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
MESH = jax.make_mesh((N,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
SPREAD, SAME = jax.NamedSharding(MESH, jax.P("n")), jax.NamedSharding(MESH, jax.P())
PER_DEVICE = {"full_grad": 4}  # it runs every layer on zeros, once for each device however many images it has
PATCHES = jaxcam.segments.grid((8, 12), 4)  # so that what is the same for all images is little of the work
OPTIONS = {
    "occlusion": {"window": 4},
    "guided_integrated_gradients": {"num_steps": 3},
    "rise": {"num_samples": 12, "cells": 2},
    **{name: {"num_samples": 12, "segments": PATCHES} for name in ("lime", "kernel_shap", "hsic")},
    **{name: {"num_samples": 2, "segments": PATCHES} for name in ("shapley_sampling", "sobol")},
    "feature_ablation": {"segments": PATCHES},
    "xrai": {"num_steps": 4, "segments": PATCHES},
}


class Wider(nn.Module):
    """A network whose convolutions are most of the work, as they are in life."""

    pooled: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3), name="early")(x))
        x = helpers.ConvRelu(16, 1, jnp.float32, name="late")(x)
        if not self.pooled:
            x = nn.tanh(nn.Conv(8, (3, 3), 2)(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def tapped(method):
    module = Wider(method.pooled)
    return jaxcam.tap(module, module.init(jax.random.key(0), jnp.zeros((1, 8, 12, 3))), "late")


def collectives(compiled) -> list[str]:
    """What the program sends between devices, but for single numbers."""
    text = compiled.as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (\(?.*?) ({kinds})(?:-start)?\(", text)
    return [f"{kind} {shape}" for shape, kind in found if re.search(r"\[\d", shape)]


def flops(compiled) -> float:
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("method", ROWS)
def test_every_device_does_its_own_images(method):
    n = N * PER_DEVICE.get(method.name, 1)
    given = tapped(method), helpers.images(n, 8, 12), jnp.arange(n, dtype=jnp.int32) % 4
    options = {**method.options, **OPTIONS.get(method.name, {})}

    def explain(each):
        """`each` copies of every image in a pass: under `shard_map` a device only knows of its own images."""

        def run(model, images, targets):
            chunk = {"chunk_size": each * len(images)} if "chunk_size" in signature(method.function).parameters else {}
            return method.function(model, images, targets, **{**options, **chunk})

        return run

    alone = jax.jit(explain(2)).lower(*given).compile()
    expected = np.asarray(alone(*given))
    spread = jax.device_put(given, (SAME, SPREAD, SPREAD))
    specs = {"in_specs": (jax.P(), jax.P("n"), jax.P("n")), "out_specs": jax.P("n")}
    for name, function in {"jit": explain(2), "shard_map": jax.shard_map(explain(2), mesh=MESH, **specs)}.items():
        compiled = jax.jit(function).lower(*spread).compile()
        found = compiled(*spread)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name)
        assert found.sharding.is_equivalent_to(SPREAD, found.ndim), name
        assert not collectives(compiled), name
        assert flops(compiled) <= 0.14 * flops(alone), name


@pytest.mark.parametrize("metric", [jaxcam.metrics.deletion, jaxcam.metrics.road, jaxcam.metrics.infidelity])
def test_metrics_too(metric):
    model = tapped(helpers.METHODS[0])
    options = {"road": {"fractions": (0.3, 0.6)}}.get(metric.__name__, {"num_steps": 4})
    options = {"num_samples": 4} if metric is jaxcam.metrics.infidelity else options
    images, targets = helpers.images(N, 8, 12), jnp.arange(N, dtype=jnp.int32) % 4
    heatmaps = jax.random.uniform(jax.random.key(3), images.shape[:3])

    def measure(model, images, heatmaps, targets):
        return metric(model, images, heatmaps, targets, chunk_size=16, **options)

    given = model, images, heatmaps, targets
    alone = jax.jit(measure).lower(*given).compile()
    spread = jax.device_put(given, (SAME, SPREAD, SPREAD, SPREAD))
    compiled = jax.jit(measure).lower(*spread).compile()
    np.testing.assert_allclose(compiled(*spread), alone(*given), rtol=1e-4, atol=1e-6)
    assert not collectives(compiled) and flops(compiled) <= 0.14 * flops(alone)


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(64, (3, 3), name="late")(nn.relu(nn.Conv(16, (3, 3))(x))))
        return nn.Dense(4)(x.mean((1, 2)))


def test_one_image_spreads_its_masks():
    """With fewer images than devices, the copies of an image go to the devices instead."""
    image = helpers.images(1, 16, 16)
    model = jaxcam.tap(Wide(), Wide().init(jax.random.key(0), image), "late")

    def explain(model, image):
        return jaxcam.score_cam(model, image, 1, chunk_size=4)

    alone = jax.jit(explain).lower(model, image).compile()
    expected = alone(model, image)
    jaxcam.config.spread = SPREAD
    try:
        compiled = jax.jit(explain).lower(*jax.device_put((model, image), SAME)).compile()
        found = compiled(*jax.device_put((model, image), SAME))
    finally:
        jaxcam.config.spread = None
    np.testing.assert_allclose(found, expected, atol=1e-5)
    turns = {each: int(re.search(r'known_trip_count.*?"n":"(\d+)"', each.as_text())[1]) for each in (alone, compiled)}
    assert turns[alone] == 16 and turns[compiled] == 2  # the same masks in an eighth of the turns
    assert flops(compiled) <= 1.28 * flops(alone)


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
sys.path.insert(0, "tests")
import helpers, jaxcam
mesh = jax.make_mesh((2,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
spread, same = jax.NamedSharding(mesh, jax.P("n")), jax.NamedSharding(mesh, jax.P())
images, targets = np.asarray(helpers.images(4)), np.array([0, 1, 2, 3], np.int32)
model = helpers.small()
expected = {}
for name, options in METHODS.items():
    expected[name] = np.asarray(getattr(jaxcam, name)(model, images, targets, **options))

def everywhere(array, sharding):
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])

model = jax.tree.map(lambda leaf: everywhere(leaf, same), model)
images, targets = everywhere(images, spread), everywhere(targets, spread)
for name, options in METHODS.items():
    found = getattr(jaxcam, name)(model, images, targets, **options)
    for shard in found.addressable_shards:
        np.testing.assert_allclose(shard.data, expected[name][shard.index], atol=1e-5)
print("agreed")
"""


def test_arrays_that_span_processes():
    """Called eagerly: the checks look at what is at hand."""
    methods = {"grad_cam": {}, "saliency": {}, "score_cam": {"chunk_size": 8}, "occlusion": {"window": 4}}
    program = PROCESS.replace("import sys\n", f"import sys\nMETHODS = {methods}\n", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run = [sys.executable, "-c", program, port]
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # as in here
    both = [
        subprocess.Popen([*run, str(index)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for index in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.strip().endswith("agreed"), err[-2000:]


def test_no_context_goes_astray():
    """Context and carried rows are sharded with the images."""

    def function(variables, images, meta):
        return jnp.einsum("nhwc,ck->nk", images, variables) * meta

    images, meta = helpers.images(N, 8, 12), jnp.linspace(1, 2, N)[:, None]
    model = jaxcam.tap(function, jnp.ones((3, 4)), context=meta)
    expected = jaxcam.rise(model, images, 1, num_samples=8)
    spread = replace(model, context=jax.device_put(model.context, SPREAD))
    spread = replace(spread, variables=jax.device_put(model.variables, SAME))
    found = jaxcam.rise(spread, jax.device_put(images, SPREAD), 1, num_samples=8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
