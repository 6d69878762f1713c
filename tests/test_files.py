"""Files are whole or absent: writers that the kernel kills in the middle, writers that meet, and folders of others."""

import ast
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import pytest

from jaxcam import _files
from jaxcam._engine import kept as engine
from jaxcam.cli import _common, _results

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What became of each kind of file, by `kill_writers.py`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.getenv("PYTHONPATH", "")])}
    command = [sys.executable, "tests/kill_writers.py", str(tmp_path_factory.mktemp("killed"))]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return {each["kind"]: each for each in map(json.loads, filter(None, ran.stdout.splitlines()))}


KINDS = ["picture", "report", "weights", "download", "page", "part", "checkpoint", "programs"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
@pytest.mark.parametrize("kind", KINDS)
def test_who_is_killed_in_the_middle_leaves_what_was_there(ended, kind):
    found = ended[kind]
    assert found["ended"] < 0, "it was to be killed"
    assert found["kept"]
    assert all(name.startswith(".") and name.endswith(_files.UNFINISHED) for name in found["beside"])
    assert found["again"] == 0 and found["now"], "the next one writes it"


def written_by_hand():
    """Calls that open a file for writing other than through `_files`; what goes to /dev/null or into memory may."""
    for folder in ("jaxcam", "experiments", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    opened = name == "open" and any("w" in ast.unparse(each) for each in node.args[-1:])
                    if opened or name in ("write_text", "write_bytes", "savez", "savefig", "save_file", "copyfileobj"):
                        yield f"{path.relative_to(ROOT)}: {ast.unparse(node)[:60]}"


def test_one_writer_writes_everything():
    allowed = ("os.devnull", "/proc/self", "figure.savefig(content", "figure.savefig(buffer", "np.savez(file")
    others = [each for each in written_by_hand() if not any(kind in each for kind in allowed)]
    assert others == []


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """Whoever reads meanwhile finds what one of them wrote, whole."""
    path, contents, over = tmp_path / "a.json", (b"a" * 50_000, b"b" * 70_000), threading.Event()
    _files.write(path, contents[0])

    def write(content):
        while not over.is_set():
            _files.write(path, content)

    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    seen = {path.read_bytes() for _ in range(200)}
    over.set()
    for thread in threads:
        thread.join()
    assert seen <= set(contents) and [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_two_processes_may_look_whether_one_folder_can_be_written(tmp_path, monkeypatch):
    """Neither takes away the other's attempt."""
    threads = [threading.Thread(target=_results.make_writable, args=[tmp_path / "out"]) for _ in range(8)]
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and list((tmp_path / "out").iterdir()) == []


def test_what_killed_writers_left_goes_after_a_day(tmp_path):
    names = [".a1.unfinished", ".b2.unfinished", "c3.unfinished", ".d4"]
    for name in names:
        (tmp_path / name).touch()
    for name in names[:1] + names[2:]:
        os.utime(tmp_path / name, (0, time.time() - _files.STALE - 60))
    _files.sweep(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == set(names[1:])
    _files.sweep(tmp_path / "nowhere")


def test_an_error_while_writing_leaves_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), _files.writing(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert [each.name for each in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"
    _files.write(tmp_path / ("n" * 255), "as long as a name can be")


# --- The cache of compiled programs ----------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """What `keep_programs` tells JAX, with the cache in a folder of the test's."""
    told = {}
    config = type("Config", (), {"jax_compilation_cache_dir": None, "update": told.__setitem__})()
    monkeypatch.setattr(jax, "config", config)
    monkeypatch.setattr(engine, "folder", None)
    monkeypatch.setenv("JAXCAM_CACHE", str(tmp_path / "own"))
    return told


def programs(tmp_path):
    return tmp_path / "own" / "programs" / os.uname().nodename


def test_a_new_folder_of_programs_is_ones_own(tmp_path, kept):
    _common.keep_programs()
    assert kept and programs(tmp_path).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_programs_that_others_may_have_written_are_not_read(tmp_path, kept, capsys, mode):
    programs(tmp_path).mkdir(parents=True)
    programs(tmp_path).chmod(mode)
    _common.keep_programs()
    assert not kept
    said = capsys.readouterr().err
    assert said == f"jaxcam: compiled programs are not kept: others may write to '{programs(tmp_path)}'\n"


@pytest.mark.parametrize(("mode", "is_kept"), [(0o777, False), (0o1777, True), (0o755, True)])
def test_nor_those_in_a_folder_that_others_may_replace(tmp_path, kept, mode, is_kept):
    programs(tmp_path).mkdir(mode=0o700, parents=True)
    (tmp_path / "own").chmod(mode)
    _common.keep_programs()
    assert bool(kept) == is_kept


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root gives folders away")
def test_nor_those_of_somebody_else(tmp_path, kept):
    programs(tmp_path).mkdir(mode=0o700, parents=True)
    os.chown(programs(tmp_path), 12345, -1)
    _common.keep_programs()
    assert not kept


def test_halves_of_programs_go(tmp_path, kept):
    programs(tmp_path).mkdir(mode=0o700, parents=True)
    for name in ("whole-cache", "whole-atime", "half-cache", "other-atime", "notes.txt"):
        (programs(tmp_path) / name).touch()
    _common.keep_programs()
    names = {each.name for each in programs(tmp_path).iterdir()} - {".lockfile"}
    assert names == {"whole-cache", "whole-atime", "notes.txt"}
