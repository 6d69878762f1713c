"""Eight fake CPU devices, float32 with full precision, and what several test files share."""

import gc
import os
from importlib.metadata import version

# Most programs of the tests compile longer than they run: XLA's older emitter of loops takes a quarter of the time, and
# small programs are not worth splitting. A flag that XLA does not know ends the process: the emitter went after 0.10.
# Each once, as a worker has them from its parent already, and JAX's cache goes by the words.
os.environ["XLA_FLAGS"] = " ".join(
    dict.fromkeys(
        ["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10.")
        + ["--xla_force_host_platform_device_count=8", "--xla_cpu_parallel_codegen_split_count=1"]
        + os.environ.get("XLA_FLAGS", "").split()
    )
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jaxtyping
import pytest
from jax._src.interpreters import mlir

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)

# Each of thousands of small programs is lowered in a context of its own, which takes as long as lowering it: here all
# share one.
if hasattr(mlir, "make_ir_context"):
    CONTEXT = mlir.make_ir_context()
    mlir.make_ir_context = lambda: CONTEXT

# The files that take longest, first, so that both workers are busy to the end; a file is the work of one worker.
LONG = ("test_methods", "test_experiments", "test_sharding", "test_modes", "test_space", "test_taps_frameworks")


def pytest_configure(config):
    """What was compiled once, the next run finds in pytest's own cache: `--cache-clear` empties it."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_finish(session):
    """A traced program is many small objects, which are not worth looking through after each thousand."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(autouse=True, scope="module")
def programs():
    """They go when their file is done: each takes memory mappings, of which a process may have 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def as_user():
    """Switches the shape checks of the tests off, to see the errors that a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
