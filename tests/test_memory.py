"""Chunks are as large as the model's real need allows, and smaller when the device has no more memory."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam._engine import memory


def usual(shape):
    return memory.chunk(jax.ShapeDtypeStruct(shape, jnp.float32), None)


@pytest.mark.parametrize(("side", "expected"), [(1, 32), (32, 32), (224, 8), (448, 2), (2000, 1), (10000, 1)])
def test_the_usual_chunk_on_a_cpu(side, expected):
    if jax.default_backend() == "cpu":
        assert usual((1, side, side, 3)) == expected


@pytest.mark.parametrize(("limit", "expected"), [(80e9, 110), (8e9, 11), (1e6, 1), (1e13, 256)])
def test_the_usual_chunk_elsewhere(monkeypatch, limit, expected):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": int(limit)})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert usual((4, 224, 224, 3)) == expected
    device.memory_stats = lambda: None
    assert usual((4, 224, 224, 3)) == 8


def program(fixed, per_image, usual, least, most):
    """What a program of so many bytes answers, and what it was asked."""
    asked = []

    def needs(share):
        asked.append(share)
        size = min(most, max(least, int(usual * share) // max(1, least) * least))
        return fixed + per_image * size, [memory.Pass(size, int(usual * share), least, most)] if usual else []

    return needs, asked


@pytest.mark.parametrize(
    ("fixed", "per_image", "usual", "least", "most", "grows", "largest", "compilations"),
    [
        (0, 10, 32, 1, 999, False, 32, 1),  # fits
        (0, 100, 32, 1, 999, False, 10, 2),  # in proportion
        (500, 100, 32, 1, 999, False, 5, 4),  # or not quite
        (0, 150, 32, 4, 10, False, 4, 2),  # all that there is, of four images, was less than the usual
        (0, 3000, 32, 1, 999, False, 1, 2),  # not even one: as little as there can be
        (0, 3000, 32, 4, 999, False, 4, 2),  # nor one copy of each of four images
        (5000, 0, 0, 0, 999, True, 0, 1),  # no loops
        (0, 1, 32, 1, 999, True, 256, 2),  # much too small
        (0, 1, 24, 16, 999, True, 256, 2),  # no more than that, though all of the first that is asked is not taken
        (0, 20, 8, 1, 999, True, 25, 2),
        (0, 20, 8, 1, 8, True, 8, 1),  # all that there is
        (0, 100, 4, 1, 999, True, 4, 1),  # not worth a second compilation
    ],
)
def test_what_is_suitable(fixed, per_image, usual, least, most, grows, largest, compilations):
    needs, asked = program(fixed, per_image, usual, least, most)
    fit = memory.suitable(needs, 1000, grows)
    assert (fit.largest, len(asked)) == (largest, compilations)
    assert needs(fit.share)[1] == fit.passes


# --- A model that needs 50 times as much per pixel as a ResNet-50, 90 kB ----------------------------------------------

WIDE = 22_500
DRAW = np.random.default_rng(0).normal
VARIABLES = {
    "in": jnp.asarray(DRAW(size=(3, WIDE)), jnp.float32),
    "out": jnp.asarray(DRAW(size=(WIDE, 4)) / WIDE, jnp.float32),
}
HUNGRY = jaxcam.tap(
    (
        lambda variables, images: jax.nn.relu(images @ variables["in"]) @ variables["out"],
        lambda variables, activations: jnp.tanh(activations).mean((1, 2)),
    ),
    VARIABLES,
)
IMAGES = jnp.asarray(DRAW(size=(2, 8, 8, 3)), jnp.float32)
ROWS = {
    "score_cam": {},
    "integrated_gradients": {"num_steps": 32},
    "rise": {"num_samples": 32, "key": jax.random.key(0)},
    "occlusion": {"window": 6, "stride": 1},
    "kernel_shap": {"num_samples": 32, "key": jax.random.key(0)},
    "smooth_grad": {"num_samples": 32, "key": jax.random.key(0)},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_model_that_needs_much_more(monkeypatch, name):
    """The usual chunk, 32 images of 64 pixels, would take 184 MB."""
    limit, fits = 40_000_000, []

    def suitable(needs, *args):
        fits.append((fit := memory_suitable(needs, *args), needs(fit.share)[0])[0:2])
        return fit

    memory_suitable = memory.suitable
    monkeypatch.setattr(memory, "suitable", suitable)
    monkeypatch.setattr(memory, "budget", lambda device: limit)
    method = jaxcam.METHODS[name].function
    found = method(HUNGRY, IMAGES, 1, **ROWS[name])
    ((fit, need),) = fits
    assert need <= limit and 2 <= fit.largest <= 10, (need, fit)
    np.testing.assert_allclose(found, method(HUNGRY, IMAGES, 1, **ROWS[name], chunk_size=1), atol=1e-5)


def test_a_method_inside_of_another_program_is_traced_once_and_fitted_each_time(monkeypatch):
    """JAX keeps the trace of what is inside; how much its loops take is known all the same."""
    fits, memory_suitable = [], memory.suitable
    monkeypatch.setattr(memory, "suitable", lambda *args: fits.append(memory_suitable(*args)) or fits[-1])
    monkeypatch.setattr(memory, "budget", lambda device: 40_000_000)
    methods = {"rise": {"num_samples": 32, "key": jax.random.key(1)}}
    for percentile in (99, 98):
        jaxcam.explain(HUNGRY, IMAGES, 1, methods=methods, percentile=percentile)
    first, second = fits
    assert first.passes == second.passes != [] and first.share == second.share < 1


def test_one_copy_of_each_image_is_the_least():
    needs, _ = program(0, 1, 32, 4, 999)
    fit = memory.Fit(1.0, needs(1.0)[1])
    for largest in (16, 8, 4):
        with pytest.warns(UserWarning, match=f"pass chunk_size={largest}"):
            memory._halve(fit, needs, RuntimeError())
    with pytest.raises(MemoryError, match="One copy of each image, 4 in all, needs more memory"):
        memory._halve(fit, needs, RuntimeError())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits a process's memory as Linux does")
def test_a_device_without_memory_gets_smaller_chunks(monkeypatch):
    import resource  # not on Windows

    images = jnp.asarray(DRAW(size=(1, 16, 16, 3)), jnp.float32)

    def maps(**options):
        return jaxcam.rise(HUNGRY, images, 1, key=jax.random.key(0), num_samples=32, **options)

    expected = maps(chunk_size=4)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000, before[1]))
    try:
        with pytest.warns(UserWarning, match="they are now 16 images. .* pass chunk_size=16"):
            found = maps()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    np.testing.assert_allclose(found, expected, atol=1e-5)
