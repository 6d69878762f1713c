"""Files and arrays in, model-ready batches out: torchvision's pixels, every mode upright, one sentence per mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcam.image import Preprocess, open_image, sample

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
SMALL = Preprocess(32, 32, HALF, HALF)


def pattern(height, width):
    """Detail at every frequency, so that a wrong filter, size or offset shows."""
    y, x, c = np.mgrid[:height, :width, :3]
    return np.uint8((3 * x * x + 5 * y * y + 7 * (c + 1) * x * y + 31 * c) % 256)


def corners(height, width):
    """Four quarters of known colours: red, green / blue, white."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2] = [255, 0, 0]
    array[: height // 2, width // 2 :] = [0, 255, 0]
    array[height // 2 :, : width // 2] = [0, 0, 255]
    array[height // 2 :, width // 2 :] = 255
    return array


# Like torchvision. The numbers are from torchvision 0.28.0 with Pillow 13.0.0:
# `crop = Compose([Resize(resize), CenterCrop(side)])(Image.fromarray(pattern(height, width)))`,
# its pixels [0, 0], [side // 2, side // 3] and [-1, -1], and a weighted sum over all of its pixels.
RESIZED = [
    (97, 64, 48, 40, [160, 125, 140, 145, 178, 113, 140, 138, 135], 30308719),
    (61, 133, 48, 48, [51, 81, 111, 128, 121, 47, 202, 160, 95], 43608404),
    (7, 5, 48, 33, [15, 50, 84, 85, 148, 211, 102, 170, 91], 21498240),
    (48, 48, 48, 31, [192, 159, 126, 115, 228, 85, 156, 55, 210], 17868794),
    (1, 3, 8, 5, [2, 33, 64, 3, 34, 65, 6, 37, 68], 101750),
    (201, 200, 37, 20, [133, 130, 132, 138, 132, 133, 130, 120, 136], 7373851),
]


@pytest.mark.parametrize(("height", "width", "resize", "crop", "pixels", "total"), RESIZED)
def test_pixels_are_torchvisions(height, width, resize, crop, pixels, total):
    image = pattern(height, width)
    batch = Preprocess(resize, crop, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))([image, Image.fromarray(image)])
    assert isinstance(batch, jax.Array) and batch.dtype == jnp.float32 and batch.shape == (2, crop, crop, 3)
    for result in np.asarray(batch):
        whole = np.int64(np.round(result * 255))
        np.testing.assert_array_equal(result, np.float32(whole) / np.float32(255))
        assert [*whole[0, 0], *whole[crop // 2, crop // 3], *whole[-1, -1]] == pixels
        assert (whole * (1 + np.arange(whole.size).reshape(whole.shape) % 97)).sum() == total


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_interpolations_are_pillows(interpolation):
    preprocess = Preprocess(48, 40, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation)
    image = pattern(97, 64)
    resized = Image.fromarray(image).resize((48, 72), Image.Resampling[interpolation.upper()])
    expected = np.asarray(resized.crop((4, 16, 44, 56)), np.float32) / 255
    np.testing.assert_array_equal(preprocess(image)[0], expected)
    from_floats = np.asarray(preprocess(image / 255)[0])
    assert from_floats.min() >= 0 and from_floats.max() <= 1  # clipped where the filter overshoots
    image = np.uint8(image / 4 + 96)  # where it does not
    assert 0 < np.abs(preprocess(image / 255) - preprocess(image)).max() < 1.5 / 255


def test_normalisation_is_torchvisions():
    batch = Preprocess(48, 40, MEAN, STD)(pattern(97, 64))
    # From torchvision 0.28.0: Resize(48), CenterCrop(40), ToTensor(), Normalize(MEAN, STD) of pattern(97, 64).
    assert batch[0, 0, 0].tolist() == [0.6220567226409912, 0.1526610553264618, 0.6356428861618042]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, jnp.bfloat16])
def test_floats_are_resized_like_bytes(dtype):
    preprocess = Preprocess(48, 40, MEAN, STD)
    image = pattern(97, 64)
    from_floats = preprocess(jnp.asarray(image / 255, dtype) if dtype == jnp.bfloat16 else (image / 255).astype(dtype))
    gap = np.abs(preprocess.restore(from_floats) - preprocess.restore(preprocess(image))).max()
    assert 0 < gap < 1.5 / 255  # bytes are rounded twice, floats are not


def test_all_ways_to_give_images_agree(tmp_path):
    images = np.stack([pattern(40, 50), corners(40, 50)])
    path = tmp_path / "corners.png"
    Image.fromarray(images[1]).save(path)
    expected = np.asarray(SMALL(images))
    ways = [
        list(images),
        tuple(images),
        jnp.asarray(images),
        [images[0], path],
        [Image.fromarray(images[0]), str(path)],
        [jnp.asarray(images[0]), Image.fromarray(images[1])],
    ]
    for way in ways:
        np.testing.assert_array_equal(SMALL(way), expected)
    for way in (path, str(path), images[1], Image.fromarray(images[1]), [path]):
        np.testing.assert_array_equal(SMALL(way), expected[1:])
    assert SMALL([pattern(40, 50), pattern(33, 90)]).shape == (2, 32, 32, 3)


def test_view_is_the_region_that_the_model_sees():
    image = pattern(300, 450)
    np.testing.assert_array_equal(SMALL.view(image)[0], image[:, 75:375])
    [view] = Preprocess(256, 224, MEAN, STD).view(np.uint8(np.mgrid[:600, :400, :3][0] / 3))
    assert view.shape == (350, 350, 3) and view.dtype == np.uint8
    assert abs(int(view[0, 0, 0]) - 125 / 3) < 2 and abs(int(view[-1, 0, 0]) - 475 / 3) < 2
    assert [each.shape for each in SMALL.view([pattern(700, 900), pattern(5, 7)])] == [(640, 640, 3), (5, 5, 3)]


def test_view_of_floats():
    image = corners(48, 48)
    np.testing.assert_array_equal(SMALL.view(np.float32(image) / 255)[0], image)


def test_view_agrees_with_the_crop():
    """Coarsely: resizing what `view` shows gives what the model gets, also where rounding makes the scales differ."""
    preprocess = Preprocess(40, 24, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    smooth = np.uint8(np.add.outer(np.arange(211), np.arange(151))[..., None] / [2, 3, 4])
    [view] = preprocess.view(smooth)
    again = np.asarray(Image.fromarray(view).resize((24, 24), Image.Resampling.BILINEAR))
    inside = np.s_[1:-1, 1:-1]  # the filter reaches past the edge of the region
    assert np.abs(again[inside] / 255 - np.asarray(preprocess(smooth)[0])[inside]).max() < 1.6 / 255


def test_restore_inverts_the_normalisation():
    preprocess = Preprocess(32, 32, MEAN, STD)
    image = np.float32(pattern(32, 32)) / 255
    restored = preprocess.restore(preprocess(image))
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored[0], image, atol=1e-6)
    assert (
        preprocess.restore(np.full((2, 2, 3), 99.0)).max() == 1
        and preprocess.restore(np.full((2, 2, 3), -99)).min() == 0
    )
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        preprocess.restore(np.zeros((3, 32, 32)))


def test_sample():
    image = open_image(sample())
    assert image.size == (451, 300) and image.mode == "RGB" and sample().stat().st_size < 60_000


# Modes.


def grey_ramp():
    return np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "PA"])
def test_modes_keep_their_colours(mode):
    # Black and white survive every mode; the other colours wherever the mode has colours.
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    if mode not in ("L", "1", "LA"):
        image = corners(40, 40)
    via = (
        Image.fromarray(image).convert("P", palette=Image.Palette.ADAPTIVE)
        if mode in ("P", "PA")
        else Image.fromarray(image)
    )
    via = via.convert("RGBA").convert(mode) if mode == "RGBa" else via.convert(mode)
    [view] = SMALL.view(via)
    np.testing.assert_allclose(np.int64(view), image, atol=3)


def test_grey_file(tmp_path):
    Image.fromarray(grey_ramp()).save(tmp_path / "grey.png")
    image = np.asarray(open_image(tmp_path / "grey.png"))
    np.testing.assert_array_equal(image, np.repeat(grey_ramp()[..., None], 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparency_lies_on_white(tmp_path, mode):
    path = tmp_path / "transparent.png"
    if mode in ("RGBA", "LA"):
        array = np.zeros((4, 6, len(mode)), np.uint8)  # black, a third each transparent, half transparent, opaque
        array[..., -1] = np.repeat([0, 128, 255], 2)
        Image.fromarray(array).save(path)
        expected = [255, 127, 0]
    elif mode == "P":
        image = Image.fromarray(np.uint8([[0, 0, 1, 1, 2, 2]] * 4)).convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0, 9, 9, 9])
        image.save(path, transparency=bytes([0, 128, 255]))
        expected = [255, 127, 9]
    else:
        Image.fromarray(np.uint8([[7, 7, 0, 0, 9, 9]] * 4)).save(path, transparency=7)
        expected = [255, 0, 9]
    assert open_image(path).getpixel((0, 0)) == (expected[0],) * 3
    np.testing.assert_array_equal(np.asarray(open_image(path))[0, ::2], np.repeat(expected, 3).reshape(3, 3))


def test_palette_file(tmp_path):
    image = Image.fromarray(corners(20, 30)).quantize(4)
    image.save(tmp_path / "palette.gif")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "palette.gif")), corners(20, 30))


def test_cmyk_file(tmp_path):
    Image.fromarray(corners(40, 40)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    with Image.open(tmp_path / "cmyk.jpg") as image:
        assert image.mode == "CMYK"
    np.testing.assert_allclose(np.int64(open_image(tmp_path / "cmyk.jpg")), corners(40, 40), atol=6)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    values = np.uint16([[0, 257, 32768, 65535]] * 4)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    assert np.asarray(open_image(tmp_path / f"deep.{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_grey(tmp_path):
    Image.fromarray(np.float32([[0, 0.2, 1]] * 3)).save(tmp_path / "float.tif")
    assert np.asarray(open_image(tmp_path / "float.tif"))[0, :, 1].tolist() == [0, 51, 255]
    Image.fromarray(np.float32([[0, 200, np.nan]] * 3)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif' has the mode F and grey values outside 0..1"):
        open_image(tmp_path / "float.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, suffix, orientation):
    path = tmp_path / f"rotated.{suffix}"
    scene = Image.fromarray(corners(32, 48))
    stored = {  # how a camera held in this orientation stores the scene
        1: scene,
        2: scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: scene.transpose(Image.Transpose.ROTATE_180),
        4: scene.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: scene.transpose(Image.Transpose.TRANSPOSE),
        6: scene.transpose(Image.Transpose.ROTATE_90),
        7: scene.transpose(Image.Transpose.TRANSVERSE),
        8: scene.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    stored.save(path, exif=exif, **options)
    upright = open_image(path)
    assert upright.size == (48, 32)
    np.testing.assert_allclose(np.int64(upright)[4::24, 4::24], corners(32, 48)[4::24, 4::24], atol=8)
    with Image.open(path) as image:
        np.testing.assert_array_equal(SMALL(image), SMALL(path))


# Mistakes.


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Cannot open '.*nothing.png': there is no such file\."):
        open_image(tmp_path / "nothing.png")


def test_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"it is a folder; name the files in it"):
        SMALL([tmp_path])


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"Cannot open 'secret.png': you have no permission to read it\."):
        open_image("secret.png")


def test_disk_failure(monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(OSError, match=r"Cannot open 'photo.png': Input/output error\."):
        open_image("photo.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_file(tmp_path, suffix, kept):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(pattern(60, 60)).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"cut.{suffix}' is truncated or damaged: .+[^.]\.$"):
        SMALL(path)


def test_not_an_image(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("These are words. " * 99)
    with pytest.raises(ValueError, match=r"notes.jpg' is not an image that Pillow can read"):
        open_image(path)


def test_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty.png' is empty \(0 bytes\)"):
        open_image(tmp_path / "empty.png")


def test_decompression_bomb(tmp_path, monkeypatch):
    Image.new("L", (90, 90)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ValueError, match=r"bomb.png' is too large: .*8100 pixels.* PIL.Image.MAX_IMAGE_PIXELS"):
        open_image(tmp_path / "bomb.png")


def test_too_narrow_to_resize(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(ValueError, match=r"1 pixels wide and 99 high: too narrow to resize its short side to 32"):
        SMALL(np.zeros((99, 1, 3), np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers(value):
    image = np.zeros((8, 8, 3), np.float32)
    image[3, 4, 1] = value
    with pytest.raises(ValueError, match=r"Image 2 of 2 has NaN or infinite pixels"):
        SMALL(np.stack([np.zeros_like(image), image]))


WRONG_SHAPES = [
    ((8, 8), r"has shape \(8, 8\); expected \[h, w, 3\]. It looks grey: use np.stack"),
    ((8, 8, 1), r"It looks grey: use np.repeat"),
    ((8, 8, 4), r"Drop the alpha channel"),
    ((8, 8, 2), r"The last axis must be the channels red, green, blue"),
    ((3, 8, 8), r"The image has shape \(3, 8, 8\).*channels come first: use np.moveaxis\(image, 0, -1\)"),
    ((2, 3, 8, 8), r"Image 1 of 2 has shape \(3, 8, 8\).*channels come first"),
    ((1, 2, 8, 8, 3), r"Several images are one array \[n, h, w, 3\] or a list"),
    ((8,), r"has shape \(8,\)"),
    ((), r"has shape \(\)"),
]


@pytest.mark.parametrize(("shape", "message"), WRONG_SHAPES)
@pytest.mark.parametrize("library", [np, jnp])
def test_wrong_rank_or_channels(shape, message, library):
    with pytest.raises(ValueError, match=message):
        SMALL(library.zeros(shape, np.uint8))


def test_batch_inside_a_list():
    with pytest.raises(ValueError, match=r"Image 1 of 1 has shape \(1, 8, 8, 3\).*or a list of arrays"):
        SMALL([np.zeros((1, 8, 8, 3), np.uint8)])


def test_floats_in_0_to_255():
    with pytest.raises(
        ValueError, match=r"pixels up to 255; floats must lie in \[0, 1\]. Divide by 255, or pass uint8"
    ):
        SMALL(np.float32(corners(8, 8)))
    with pytest.raises(ValueError, match=r"pixels up to 6.554e\+04.*Divide by the largest possible value"):
        SMALL(np.float32(corners(8, 8)) * 257)


def test_negative_floats():
    with pytest.raises(ValueError, match=r"negative pixels \(down to -1\).*normalised already"):
        SMALL(SMALL(corners(32, 32)))


def test_floats_may_overshoot_a_little():
    np.testing.assert_array_equal(SMALL(np.float32([[[1.0005, 0, -0.0005]]])), SMALL(np.float32([[[1, 0, 0]]])))


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3)])
def test_no_pixels(shape):
    with pytest.raises(ValueError, match=rf"has shape \({shape[0]}, {shape[1]}, 3\): it has no pixels"):
        SMALL(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"Image 2 of 2 is . pixels wide and . high: it has no pixels"):
        SMALL([np.zeros((8, 8, 3)), Image.new("RGB", shape[1::-1])])


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 8, 8, 3))])
def test_no_images(images):
    with pytest.raises(ValueError, match=r"There are no images"):
        SMALL(images)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int8, bool])
def test_other_integers(dtype):
    with pytest.raises(
        ValueError, match=rf"Image 1 of 1 holds {np.dtype(dtype)}; expected uint8 or floating point. Use"
    ):
        SMALL([np.zeros((8, 8, 3), dtype)])


@pytest.mark.parametrize("image", [None, 3, {"a": 1}])
def test_other_types(image):
    with pytest.raises(ValueError, match=rf"Image 2 of 2 is of type {type(image).__name__}; give a path, a PIL image"):
        SMALL([corners(8, 8), image])


def test_errors_name_the_file_or_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.png"):
        SMALL([corners(8, 8), tmp_path / "nothing.png"])
    with pytest.raises(ValueError, match=r"^Image 3 of 3 "):
        SMALL.view([corners(8, 8), corners(8, 8), np.zeros((8, 8))])


@pytest.mark.parametrize(("resize", "crop"), [(31, 32), (32, 0), (0, 0), (32, -1)])
def test_crop_must_fit(resize, crop):
    with pytest.raises(
        ValueError, match=rf"crop is {crop} and resize is {resize}; they must satisfy 0 < crop <= resize"
    ):
        Preprocess(resize, crop, HALF, HALF)


def test_deviation_must_be_positive():
    with pytest.raises(ValueError, match="every channel's must be positive"):
        Preprocess(32, 32, HALF, (0.5, 0.0, 0.5))
