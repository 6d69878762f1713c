"""CIFAR-10: prepared without TensorFlow, read in order, and clear errors where it cannot be had."""

import hashlib
import http.server
import io
import sys
import tarfile
import threading
import time

import numpy as np
import pytest

from jaxcam import data

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:tensorflow_datasets.*")


def archive(images, labels):
    """A tar.gz in the layout of the original binary archive; five training files and a test file, two images each."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for index, name in enumerate([*data.CIFAR10_FILES["train"], *data.CIFAR10_FILES["test"]]):
            rows = slice(2 * index, 2 * index + 2)
            planes = images[rows].transpose(0, 3, 1, 2).reshape(2, -1)
            records = np.concatenate([labels[rows, None].astype(np.uint8), planes], axis=1).tobytes()
            info = tarfile.TarInfo(name)
            info.size = len(records)
            tar.addfile(info, io.BytesIO(records))
    return content.getvalue()


@pytest.fixture(scope="module")
def original():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, 12)
    return images, labels, archive(images, labels)


@pytest.fixture(scope="module")
def server(original):
    """Serves the archive on loopback, whole and cut short."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = original[2]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if self.path == "/whole.tar.gz" else content[: len(content) // 2])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def sha256(original):
    return hashlib.sha256(original[2]).hexdigest()


def test_download_prepare_and_read(original, server, tmp_path):
    data.prepare_cifar10(tmp_path, url=f"{server}/whole.tar.gz", sha256=sha256(original))
    images, labels, _ = original
    train, test = data.cifar10("train", data_dir=tmp_path), data.cifar10("test", data_dir=tmp_path)
    np.testing.assert_array_equal(train.images, images[:10])  # lossless, and in the original order
    np.testing.assert_array_equal(train.labels, labels[:10])
    np.testing.assert_array_equal(test.images, images[10:])
    np.testing.assert_array_equal(test.labels, labels[10:])
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    assert "tensorflow" not in sys.modules


def test_truncated_download_is_an_error_and_leaves_nothing(original, server, tmp_path):
    with pytest.raises(OSError, match="could not be downloaded .*connection ended after [\\d,]+ of [\\d,]+ bytes"):
        data.prepare_cifar10(tmp_path, url=f"{server}/half.tar.gz", sha256=sha256(original))
    assert not (tmp_path / "downloads" / "half.tar.gz").exists()


def test_altered_archive(original, server, tmp_path):
    with pytest.raises(ValueError, match="is not the published CIFAR-10 archive: its sha256 is"):
        data.prepare_cifar10(tmp_path, url=f"{server}/whole.tar.gz")


def test_without_network_it_fails_in_seconds(tmp_path, monkeypatch):
    start = time.perf_counter()
    monkeypatch.setattr(data, "CIFAR10_URL", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(OSError, match="CIFAR-10 is not prepared in .* Prepare it where there is network"):
        data.cifar10("test", data_dir=tmp_path)
    assert time.perf_counter() - start < 10


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="Unknown split of CIFAR-10 'validation'. Known: train, test."):
        data.cifar10("validation", data_dir=tmp_path)


def test_with_square_marks_one_class():
    images = np.full((6, 32, 32, 3), 7, np.uint8)
    split = data.Split(images, np.arange(6, dtype=np.int32) % 3)
    biased = data.with_square(split, 2, size=5)
    marked = (biased.images == (255, 255, 0)).all(-1)
    assert marked[2::3, :5, :5].all() and marked.sum() == 2 * 25
    assert (biased.images[~marked] == 7).all() and (images == 7).all()  # nothing else, and not in place
    np.testing.assert_array_equal(biased.labels, split.labels)
    everywhere = data.with_square(split, size=1, color=(1, 2, 3)).images
    assert (everywhere[:, 0, 0] == (1, 2, 3)).all()
    half = data.with_square(split, 2, size=5, share=0.5).images
    assert (half[2] == biased.images[2]).all() and (half[5] == 7).all()
    with pytest.raises(ValueError, match="share is 50; it must be between 0 and 1"):
        data.with_square(split, 2, share=50)


@pytest.mark.parametrize("size", [0, 33])
def test_with_square_that_does_not_fit(size):
    split = data.Split(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=f"size is {size}; the square must have 1 to 32 pixels"):
        data.with_square(split, 0, size=size)


def test_shapes_are_what_their_masks_say():
    images, labels, masks = data.shapes(64, seed=3)
    assert images.shape == (64, 64, 64, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32 and masks.shape == (64, 6, 64, 64) and masks.dtype == bool
    there = masks.any((2, 3))
    assert set(there.sum(1)) == {2, 3}  # several objects, each with its mask
    assert there[np.arange(64), labels].all()  # the label is one of them
    assert (masks.sum(1) <= 1).all()  # no overlap
    assert set(labels) == set(range(6))
    assert (masks.sum((2, 3))[there] > 40).all()
    interior = masks & np.roll(masks, 1, 2) & np.roll(masks, -1, 2) & np.roll(masks, 1, 3) & np.roll(masks, -1, 3)
    spreads = [images[i][interior[i, k]].astype(float).std(0).max() for i, k in zip(*np.nonzero(there), strict=True)]
    assert np.median(spreads) == 0  # an object is of one colour, its background is not
    assert images[~masks.any(1)].std() > 20


def test_shapes_background_has_natural_statistics():
    """Away from the objects' scale, amplitude falls as 1 / frequency: power per octave is flat within a factor."""
    rng = np.random.default_rng(0)
    noise = data._natural_noise(rng, 32, 64).mean(-1)
    power = (np.abs(np.fft.fft2(noise - noise.mean((1, 2), keepdims=True))) ** 2).mean(0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    low, high = (power[(frequency > f) & (frequency < 1.3 * f)].mean() for f in (0.06, 0.24))
    assert low / high == pytest.approx(16, rel=0.3)


def test_shapes_are_reproducible_and_differ_by_seed():
    first, again, other = data.shapes(2), data.shapes(2), data.shapes(2, seed=1)
    assert (first.images == again.images).all() and not (first.images == other.images).all()
    with pytest.raises(ValueError, match="size is 16; they must be at least 1 and 32"):
        data.shapes(2, size=16)
