"""The benchmarks run without the PyTorch libraries, and writes what it promises."""

import json
from functools import partial

import numpy as np
import pytest

from benchmarks import attribution, startup
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
    assert "| `grad_cam` |" in path.with_suffix(".md").read_text()
    assert "this package runs alone" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round():
    row = {"seconds": {"jaxcam": [1.0, 2.0], "torch": [3.0, 8.0], "torch, compiled": [4.0, 6.0]}}
    np.testing.assert_allclose(attribution.ratios(row), [3, 3])


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
