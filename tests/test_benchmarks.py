"""The benchmarks run without the PyTorch libraries, and write what they promise."""

import argparse
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import _hlo, attribution, precision, startup, training
from experiments import _study


def test_it_writes_times_floors_and_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attribution.importlib.util, "find_spec", lambda name: None)  # as where they are not installed
    methods = ["forward", "grad_cam"]
    options = ["--model", "resnet18_cifar10", "--batch", "1", "--rounds", "2", "--methods", *methods]
    attribution.main([*options, "--output", str(tmp_path)])
    [path] = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert list(found["rows"]) == methods and found["settings"]["rounds"] == 2
    for row in found["rows"].values():
        assert len(row["seconds"]["jaxcam"]) == 2 and 0 < row["floor"] < min(row["seconds"]["jaxcam"])
        assert row["peak bytes"]["jaxcam"] > 1e5  # the images alone, as activations, are more
    assert "| `grad_cam` |" in path.with_suffix(".md").read_text() and not path.with_suffix(".png").exists()
    assert "this package runs alone" in capsys.readouterr().err
    for row in found["rows"].values():  # as where they are
        row["seconds"]["torch"] = [40.0, 5.0]
    args = argparse.Namespace(output=tmp_path, compiled=False, **found["settings"])
    attribution.write(args, 1, found["rows"], found)
    assert np.ptp(np.asarray(Image.open(path.with_suffix(".png")))) > 100


def test_ratios_are_taken_within_a_round():
    row = {"seconds": {"jaxcam": [1.0, 2.0], "torch": [3.0, 8.0], "torch, compiled": [4.0, 6.0]}}
    np.testing.assert_allclose(attribution.ratios(row), [3, 3])


def test_training_is_measured_step_by_step_and_row_by_row(tmp_path, monkeypatch):
    """A row's seed is trained once: the table of all is written from what lies there."""
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    options = ["--smoke", "--output", str(tmp_path)]
    training.main(["step", "--widths", "4", "--rounds", "2", "--batch-size", "8", *options])
    found = json.loads((tmp_path / "training-step.json").read_text())["seconds"]["4"]
    assert list(found) == list(training.SIDES) and all(len(own) == 2 and min(own) > 0 for own in found.values())
    rows = ["--width", "4", "--seconds", "0.5", "--rows", "small images first"]
    training.main(["recipe", *rows, "--seeds", "1", *options])
    first = json.loads((tmp_path / "training-recipe-4-0.5.json").read_text())["rows"]
    training.main(["recipe", *rows, "--seeds", "1", *options])
    assert json.loads((tmp_path / "training-recipe-4-0.5.json").read_text())["rows"] == first
    [run] = first["small images first"]
    assert run["epochs"] > 0 and run["accuracy"] >= 0 and run["mirrored"] >= 0 and len(run["milliseconds"]) == 4
    assert "| small images first | " in (tmp_path / "training-recipe-4-0.5.md").read_text()


def test_precisions_are_measured_in_turns(tmp_path):
    options = ["--models", "resnet18_cifar10", "--batch", "2", "--rounds", "2", "--output", str(tmp_path)]
    precision.main(["--methods", "forward", "grad_cam", *options])
    found = json.loads((tmp_path / "precision.json").read_text())["models"]["resnet18_cifar10"]
    for method in ("forward", "grad_cam"):
        assert [len(found[method]["seconds"][each]) for each in ("float32", "bfloat16")] == [2, 2]
        assert 0.9 < found[method]["alike"] <= 1
    assert "| resnet18_cifar10, grad_cam | " in (tmp_path / "precision.md").read_text()


def test_start_up_is_that_of_a_new_process(tmp_path, monkeypatch, capsys):
    weights = partial(_study.random_weights, tmp_path / "weights" / "resnet18.safetensors", "resnet18", width=8)
    monkeypatch.setattr(startup, "write_weights", lambda args: weights())
    monkeypatch.setitem(startup.SIDES, "torch", lambda args: None)
    once = startup.once
    seconds = iter([0.0, 9.0, 8.0])  # the first run does not count
    monkeypatch.setattr(startup, "once", lambda args, side: next(seconds) if side == "torch" else once(args, side))
    startup.main(["--model", "resnet18", "--rounds", "2", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "startup-resnet18.json").read_text())
    assert found["seconds"]["torch"] == [9, 8] and all(each > 0.1 for each in found["seconds"]["jaxcam"])
    np.testing.assert_allclose(found["ratios"], np.divide([9, 8], found["seconds"]["jaxcam"]))
    assert any((tmp_path / "programs").iterdir()) and "to the first heatmap" in capsys.readouterr().out


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "write_weights", lambda args: None)
    with pytest.raises(SystemExit, match="(?s)process of jaxcam failed:.*resnet18.safetensors"):
        startup.main(["--model", "resnet18", "--output", str(tmp_path), "--rounds", "1"])


def test_a_compiled_program_is_counted_as_it_runs():
    """A loop's body as often as it turns, of a branch the larger, zeros between pixels not at all."""
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolved(images, **options):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), ((0, 0), (0, 0)), dimension_numbers=numbers, **options
        )

    def looped(images):
        turned = jax.lax.scan(
            lambda total, scale: (total + convolved(scale * images), None), jnp.zeros((2, 6, 6, 5)), jnp.arange(7.0)
        )[0]
        pick = jax.lax.cond(images.sum() > 0, lambda: turned @ jnp.ones((5, 4)), lambda: turned[..., :4])
        return pick, convolved(images, lhs_dilation=(2, 2))

    text = jax.jit(looped).lower(images).compile().as_text()
    once, spread = 2 * (2 * 6 * 6 * 5) * 27, 2 * (2 * 13 * 13 * 5) * 27 // 4
    assert _hlo.total(text, _hlo.operations, fused=True) == 7 * once + 2 * (2 * 6 * 6 * 4) * 5 + spread
    assert _hlo.total(text, _hlo.collectives) == _hlo.total(text, _hlo.moved) == 0


def test_collectives_and_their_bytes_are_counted():
    mesh = jax.make_mesh((8,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("n"))
    text = jax.jit(lambda x: x.sum(0), in_shardings=spread).lower(jnp.ones((8, 5, 3))).compile().as_text()
    assert _hlo.total(text, _hlo.collectives) == 1 and _hlo.total(text, _hlo.moved) == 4 * 5 * 3


def test_cycles_are_those_of_the_compiler():
    line = '  %a = f32[2] add(%b, %c), backend_config={"estimated_cycles":"CYCLES"}'
    loop = [
        "%body (p: f32[2]) -> f32[2] {",
        line.replace("CYCLES", "5"),
        "}",
        "%while_condition (p: f32[2]) -> pred[] {",
    ]
    loop += [
        "  %limit = s32[]{:T(128)} constant(3)",
        "}",
        "ENTRY %main (p: f32[2]) -> f32[2] {",
        line.replace("CYCLES", "7"),
    ]
    loop += ["  %w = f32[2] while(%a), condition=%while_condition, body=%body", "}"]
    assert _hlo.total("\n".join(loop), _hlo.cycles) == 7 + 3 * 5
