"""The benchmark runs without the PyTorch libraries, and writes what it promises."""

import json
import sys

import numpy as np
import pytest

from benchmarks import attribution

pytestmark = pytest.mark.optimized


def test_it_writes_times_floors_and_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "benchmarks._peers", None)  # as where they are not installed
    methods = ["forward", "grad_cam"]
    options = ["--model", "resnet18_cifar10", "--batch", "1", "--rounds", "2", "--methods", *methods]
    attribution.main([*options, "--output", str(tmp_path)])
    [path] = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert list(found["rows"]) == methods and found["settings"]["rounds"] == 2
    for row in found["rows"].values():
        assert len(row["seconds"]["jaxcam"]) == 2 and 0 < row["floor"] < min(row["seconds"]["jaxcam"])
        assert row["peak bytes"]["jaxcam"] >= 0
    assert "| `grad_cam` |" in path.with_suffix(".md").read_text()
    assert "this package runs alone" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round():
    row = {"seconds": {"jaxcam": [1.0, 2.0], "torch": [3.0, 8.0], "torch, compiled": [4.0, 6.0]}}
    np.testing.assert_allclose(attribution.ratios(row), [3, 3])
