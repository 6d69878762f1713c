"""Compiled programs on disk: run without tracing the model, and only where all that they are made of is known.

Images are of a size that no other test has, so that none of the programs is in JAX's own cache.
"""

from dataclasses import replace

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam._engine import compiler, kept
from jaxcam.taps import Tap


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "folder", tmp_path)
    yield tmp_path
    forget()


def forget():
    """What a new process would not know."""
    jax.clear_caches()
    kept._kept.clear()
    kept._found.cache_clear()


def programs(folder):
    return sorted(folder.glob("*.program"))


def test_another_process_does_not_trace(folder, monkeypatch):
    """The same numbers, without a look at the model; a damaged file is written anew."""
    model, images = helpers.tiny_classifier().tap(), helpers.images(2, 17, 19)
    expected = jaxcam.grad_cam(model, images)
    [program] = programs(folder)
    np.testing.assert_array_equal(jaxcam.grad_cam(model, images), expected)
    forget()
    with monkeypatch.context() as patch:
        patch.delattr(Tap, "_visited")
        np.testing.assert_array_equal(jaxcam.grad_cam(model, images), expected)
    program.write_bytes(program.read_bytes()[:-9])
    forget()
    np.testing.assert_array_equal(jaxcam.grad_cam(model, images), expected)
    forget()
    monkeypatch.delattr(Tap, "_visited")
    np.testing.assert_array_equal(jaxcam.grad_cam(model, images), expected)
    assert programs(folder) == [program]


def test_what_a_program_is_made_of(folder, monkeypatch):
    """Each has a file of its own: a layer, a shape, an option, a setting, a version; weights have not."""
    first, other = helpers.tiny_classifier().tap(), helpers.tiny_classifier()
    second = replace(other, variables=helpers.random_variables(other.module, seed=1)).tap()
    parts = [(helpers.tiny_classifier().tap("layer2"), 2, "logit"), (first, 1, "logit"), (first, 2, "probability")]
    for count, (model, images, score) in enumerate([(first, 2, "logit"), *parts], 1):
        jaxcam.grad_cam(model, helpers.images(images, 17, 19), score=getattr(jaxcam.score, score))
        assert len(programs(folder)) == count
    jaxcam.grad_cam(second, helpers.images(2, 17, 19))
    assert len(programs(folder)) == len(parts) + 1
    monkeypatch.setattr(jaxcam.config, "rewrite", False)
    jaxcam.grad_cam(first, helpers.images(2, 17, 19))
    monkeypatch.setattr(kept, "version", lambda name: "99")
    kept._sources.cache_clear()
    jaxcam.grad_cam(first, helpers.images(2, 17, 19))
    kept._sources.cache_clear()
    assert len(programs(folder)) == len(parts) + 3


def test_half_precision_is_not_written(folder, monkeypatch):
    """XLA cannot write what it leaves to oneDNN."""
    monkeypatch.setitem(compiler.OPTIONS["cpu"], compiler.HALF, {"xla_cpu_enable_fast_math": False})
    compiler.options.cache_clear()
    tiny = helpers.tiny_classifier()
    half = replace(tiny, module=tiny.module.clone(dtype=jnp.bfloat16)).tap()
    jaxcam.grad_cam(half, helpers.images(2, 17, 19))
    assert not programs(folder)
    jaxcam.grad_cam(tiny.tap(), helpers.images(2, 17, 19))
    assert len(programs(folder)) == 1
    compiler.options.cache_clear()


class Theirs(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3), name="conv")(images)).mean((1, 2)))


def test_what_may_change_without_a_sign_is_not_kept(folder):
    images = helpers.images(1, 17, 19)
    theirs = jaxcam.tap(Theirs(), Theirs().init(jax.random.key(0), images), "conv")
    jaxcam.grad_cam(theirs, images)
    ours = helpers.tiny_classifier().tap()
    jaxcam.grad_cam(ours, images, score=lambda output, targets: output[:, 0])
    assert not programs(folder)


def test_the_oldest_go(folder, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 1)
    jaxcam.grad_cam(helpers.tiny_classifier().tap(), helpers.images(1, 17, 19))
    assert not programs(folder)
