"""150 cases of each kind from `fuzz.py`: every bad file ends in one sentence, without a warning, with nothing run."""

import fuzz
import pytest

FEW = {"orbax": 50}  # each takes Orbax some hundredths of a second


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads, a while later
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_bad_files_end_in_one_sentence(as_user, kind):
    counts = fuzz.look(kind, range(FEW.get(kind, 150)), quick=True)
    assert counts["refused"] > 0.2 * sum(counts.values()), "hardly anything was changed"


def test_the_corpus_sees_what_is_no_sentence(tmp_path):
    def fail(error):
        def read(data, folder):
            raise error

        return read

    def warn(data, folder):
        import warnings

        warnings.warn("odd", stacklevel=1)

    def run(data, folder):
        import subprocess

        subprocess.run(["true"])

    for read in (
        fail(KeyError("a")),
        fail(ValueError("a\nb.")),
        fail(ValueError("x" * 9999)),
        fail(OSError()),
        warn,
        run,
    ):
        with pytest.raises((AssertionError, KeyError)):
            fuzz.outcome(read, b"", tmp_path)
    assert fuzz.outcome(fail(ValueError("It is damaged.")), b"", tmp_path) == "refused"
    assert fuzz.outcome(lambda data, folder: None, b"", tmp_path) == "read"
