"""Files that are not what they say: each ends in one sentence or in the right picture, without a warning."""

import json
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxcam
from jaxcam import _errors, _files, cli, plot
from jaxcam.cli import _common, _results
from jaxcam.cli import explain as command
from jaxcam.image import Preprocess, open_image

ASSETS = Path(jaxcam.__file__).parent / "assets"
MODEL = ["--model", "resnet18_cifar10"]
SMALL = Preprocess(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LONG = "x" * 300
HOSTILE = "a\x1b[2J\u202eb\x07c"


# --- What is no regular file -----------------------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**42)


NO_FILES = [
    (pipe, OSError, "it is no regular file"),
    (loop, OSError, "it is a symbolic link that leads back to itself"),
    (sparse, ValueError, "has 4,398,046,511,104 bytes, more than the .* that are read"),
    (lambda path: path.mkdir(), OSError, "it is a folder; name the files in it"),
]
each_of_them = pytest.mark.parametrize(("make", "error", "message"), NO_FILES, ids=["pipe", "loop", "sparse", "folder"])


@each_of_them
def test_only_regular_files_are_opened(tmp_path, make, error, message):
    for name in ("photo.png", "weights.pth"):
        make(tmp_path / name)
    with pytest.raises(error, match=message):
        open_image(tmp_path / "photo.png")
    if make != NO_FILES[-1][0]:
        with pytest.raises(error, match=message):
            jaxcam.load(tmp_path / "weights.pth")


@each_of_them
def test_the_command_says_so_too(tmp_path, capsys, make, error, message, monkeypatch):
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    make(tmp_path / "photo.png")
    assert (
        cli.main(["explain", str(tmp_path / "photo.png"), "--model", "resnet18_cifar10", "--output", str(tmp_path)])
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [(LONG, "its name is too long"), ("a\0b", "no file's name holds NUL"), (HOSTILE, "there is no such file")],
    ids=["long", "NUL", "escapes"],
)
def test_names_that_no_file_has(name, message):
    for path in (name, Path(name)):
        with pytest.raises((OSError, ValueError), match=message) as caught:
            open_image(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    with pytest.raises((OSError, ValueError), match="There is no file|Unknown model") as caught:
        jaxcam.load(name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    with pytest.raises((OSError, ValueError), match="There is no file") as caught:
        jaxcam.load(f"folder/{name}.pth")
    with pytest.raises((OSError, ValueError), match="Cannot write" if name != HOSTILE else "nothing") as caught:
        _files.write(name, b"")
        os.unlink(name)
        raise ValueError("nothing")


def test_an_unknown_home_is_no_file():
    with pytest.raises(FileNotFoundError, match="There is no file ~nobody-of-this-name/w.pth"):
        jaxcam.load("~nobody-of-this-name/w.pth")


def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path):
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    os.mkfifo(tmp_path / "manifest.ocdbt")
    with pytest.raises(ValueError, match="is not a whole Orbax checkpoint of arrays: manifest.ocdbt is no file"):
        jaxcam.load(tmp_path)


# --- What is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202ecod.exe", r"\u202ecod.exe"),
        ("d\udcff", r"d\udcff"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
        ("日本　猫 é", "日本　猫 é"),
    ],
)
def test_nothing_that_is_printed_is_obeyed(text, expected, capsys):
    assert _errors.printable(text) == _errors.shown(text) == expected
    _common.complain(f"{text}\n{text}")
    said = capsys.readouterr().err
    assert said.startswith("jaxcam: ") and said.count("\n") == 1 and said[:-1].isprintable()


def test_what_an_error_quotes_is_short():
    nested = [[]]
    for _ in range(60):
        nested = [nested, nested]
    for value in (nested, "x" * 10**6, {"a": "b" * 10**6}, ValueError("c" * 10**6), list(range(10**5)), 10**4000):
        assert len(_errors.shown(value)) <= 200
    assert len(str(_errors.unknown("model", "y" * 10**5, ["a", "b"]))) < 400


def ones(model, batch, name):
    """In the place of a method."""
    return command.Explained(np.ones((1, 1, 32, 32), np.float32), np.ones((1, 1, 32, 32, 3), np.float32), [])


def test_names_and_labels_do_not_reach_the_terminal(tmp_path, capsys, monkeypatch):
    """Through the whole command: its report, its files, its panel in a font that lacks the letters."""
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    monkeypatch.setattr(command, "_explained", ones)
    path = tmp_path / f"{HOSTILE}猫.png"
    Image.new("RGB", (40, 40), "red").save(path)
    assert (
        cli.main(
            [
                "explain",
                str(path),
                "--model",
                "resnet18_cifar10",
                "--method",
                "saliency",
                "--output",
                str(tmp_path / "o"),
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxcam: 1/1 saliency: ") and captured.err.count("\n") == 1
    assert all(each.isprintable() or each == "\n" for each in captured.out)
    assert r"a\x1b[2J\u202eb\x07c" in captured.out.replace("\n", "")
    assert all(each.name.isprintable() for each in (tmp_path / "o").iterdir())


def test_names_leave_room_for_what_follows():
    names = _results.unique_names([f"{'猫' * 80}{end}.png" for end in "ab"], ["deep_feature_factorization"], "png")
    assert len(set(names)) == 2
    assert max(len(each.encode()) for name in names for each in _results.files(name, ["m" * 100], "png").values()) < 255
    labels = (LONG, "cat")
    assert max(map(len, command._files_of("saliency", [0, 1], labels))) < 100


def test_letters_that_a_font_lacks_are_no_warning():
    figure = plot.panel(
        np.zeros((8, 8, 3), np.uint8), {"猫": np.ones((4, 4))}, title="\x1b 猫 $x", predictions=[("猫", 1.0)]
    )
    assert plot._layout.written(figure, "png", 50)


# --- Images ----------------------------------------------------------------------------------------------------------


def ifd(entries, kind="<HHII"):
    return struct.pack("<H", len(entries)) + b"".join(struct.pack(kind, *each) for each in entries) + bytes(4)


def test_a_broken_exif_block_says_nothing(tmp_path):
    """Its orientation points outside of it."""
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd([(0x0112, 3, 9, 10**9), (0x8769, 4, 1, 10**9)])
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg", exif=block)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "other.jpg", exif=b"Exif\0\0II*\0" + bytes(2))
    for name in ("photo.jpg", "other.jpg"):
        assert open_image(tmp_path / name).size == (40, 30)


def test_a_rotation_is_made_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.uint8(np.arange(40 * 60 * 3) % 251).reshape(40, 60, 3)).save(tmp_path / "p.png", exif=exif)
    assert open_image(tmp_path / "p.png").size == (40, 60)
    np.testing.assert_array_equal(SMALL(open_image(tmp_path / "p.png")), SMALL(tmp_path / "p.png"))


def test_a_tiff_of_many_tags(tmp_path):
    tags = [(40000 + index % 20000, 3, 70, 8) for index in range(60000)]
    (tmp_path / "tags.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + ifd(tags))
    with pytest.raises(ValueError, match="tags.tif' is "):
        open_image(tmp_path / "tags.tif")


def png(width, height):
    """Only its header, which claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_a_claim_of_many_pixels_names_the_limit(tmp_path):
    for side in (13_000, 40_000):
        (tmp_path / "claim.png").write_bytes(png(side, 13_000))
        with pytest.raises(ValueError, match="too large: (it has 169,000,000|Image size .520000000) pixels") as caught:
            open_image(tmp_path / "claim.png")
        assert "limit is 89,478,485" in str(caught.value) or "limit of" in str(caught.value)
        assert "--max-pixels, PIL.Image.MAX_IMAGE_PIXELS" in str(caught.value)


def test_large_jpegs_are_decoded_at_half_their_size(tmp_path, monkeypatch):
    pixels = np.uint8(np.add.outer(np.arange(64), np.arange(96))[..., None] * [1, 0.5, 0.25])
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "progressive.jpg", quality=95, progressive=True)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    whole = np.asarray(open_image(tmp_path / "large.jpg"), int)
    assert whole.shape == (64, 96, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 96 - 1)
    half = np.asarray(open_image(tmp_path / "large.jpg"), int)
    assert half.shape == (32, 48, 3)
    assert np.abs(half - whole.reshape(32, 2, 48, 2, 3).mean((1, 3))).max() < 4
    for other in ("large.png", "progressive.jpg"):  # all of whose pixels must be held at once
        with pytest.raises(ValueError, match="too large: it has 6,144 pixels, and the limit is 6,143"):
            open_image(tmp_path / other)


def test_max_pixels_of_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    monkeypatch.setattr(command, "_explained", ones)
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    arguments = ["explain", str(tmp_path / "photo.png"), *MODEL, "--output", str(tmp_path / "o")]
    before = Image.MAX_IMAGE_PIXELS
    assert cli.main([*arguments, "--method", "saliency", "--max-pixels", "1599"]) == 2
    assert "1,600 pixels, and the limit is 1,599" in capsys.readouterr().err
    assert cli.main([*arguments, "--method", "saliency", "--max-pixels", "1600"]) == 0
    assert before == Image.MAX_IMAGE_PIXELS
    for wrong in ("0", "-3", "many"):
        assert cli.main([*arguments, "--max-pixels", wrong]) == 2


def test_transparency_in_strips_is_that_of_the_whole():
    """More rows than a strip has."""
    from jaxcam.image import STRIP

    pixels = np.random.default_rng(0).integers(0, 256, (2 * STRIP + 7, 5, 4), np.uint8)
    image = Image.fromarray(pixels)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(SMALL.view(image)[0], SMALL.view(expected)[0])
    grey = np.uint16(np.arange((2 * STRIP + 7) * 5).reshape(-1, 5))
    np.testing.assert_array_equal(
        SMALL.view(Image.fromarray(grey))[0], SMALL.view(Image.fromarray(np.uint8(np.round(grey / 257))))[0]
    )


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n")
    with pytest.raises(ValueError, match="is PostScript, a program that another would have to run"):
        open_image(tmp_path / "picture.png")


def test_warnings_of_others_still_arrive(tmp_path):
    """Only Pillow's are not shown, and only while an image is opened."""
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_image(tmp_path / "p.png")
        warnings.warn("mine", stacklevel=1)
        warnings.warn_explicit("Pillow's", UserWarning, "Image.py", 1, module="PIL.Image")
    assert [str(each.message) for each in caught] == ["mine", "Pillow's"]


# --- What lies beside the weights ------------------------------------------------------------------------------------


BAD_CONFIGS = [
    {"architecture": "resnet18", "input_size": [3, 10**9, 10**9]},
    {"architecture": "resnet18", "mean": [float("nan"), 0, 0]},
    {"architecture": "resnet18", "std": [1, float("inf"), 1]},
    {"architecture": "x" * 10**5},
    {"architecture": "resnet18", "label_names": ["y" * 10**5] * 3},
    {"model_type": "vit", "hidden_act": "z" * 10**5},
]


@pytest.mark.parametrize("index", range(len(BAD_CONFIGS)))
def test_sidecars_that_cannot_be(tmp_path, index):
    shutil.copy(
        Path(jaxcam.__file__).parent / "assets" / "resnet18_cifar10.safetensors", tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(BAD_CONFIGS[index]))
    with pytest.raises(ValueError) as caught:
        jaxcam.load(tmp_path)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_a_file_of_many_tensors_is_not_traced(tmp_path):
    from safetensors.numpy import save_file

    save_file(
        {f"layer1.{index}.conv1.weight": np.zeros(1, np.float32) for index in range(2001)}, tmp_path / "w.safetensors"
    )
    with pytest.raises(ValueError, match="names 2,001 tensors; the networks of jaxcam have at most 2,000"):
        jaxcam.load(tmp_path / "w.safetensors")
