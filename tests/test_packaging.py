"""The package as it is installed: by `pip install -e`, from a clone that lies beside the user's own scripts."""

import pathlib
import shutil
import subprocess
import sys
import tomllib
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that holds a clone, and the Python of an environment in which the clone is installed, editable."""
    folder = tmp_path_factory.mktemp("packaging")
    clone, environment = folder / "jaxcam", folder / "environment"
    shutil.copytree(ROOT / "jaxcam", clone / "jaxcam", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    venv.create(environment, with_pip=False)
    # What jaxcam depends on is found where it is, but not as an environment: its own editable installs do not count.
    [packages] = environment.glob("lib/python*/site-packages")
    own = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(own))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--ignore-installed"]
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--prefix", environment, "--editable", clone]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, environment / "bin"


def test_a_clone_is_imported_from_the_folder_above_it(installed):
    """Where `jaxcam` is a folder without `__init__.py`, which must not be taken for the package."""
    folder, programs = installed
    program = "import jaxcam; print(jaxcam.__file__); print(jaxcam.sample().exists())"
    result = subprocess.run([programs / "python", "-c", program], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(folder / "jaxcam" / "jaxcam" / "__init__.py"), "True"]


@pytest.mark.parametrize("command", [["python", "-m", "jaxcam"], ["jaxcam"]], ids=["module", "script"])
def test_the_command_is_installed(installed, command):
    folder, programs = installed
    arguments = [programs / command[0], *command[1:], "--help"]
    if command == ["jaxcam"]:  # its first line names the Python that ran pip, not that of this environment
        arguments.insert(0, programs / "python")
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: jaxcam ")


def test_extras_that_the_tests_need_are_among_the_tests():
    """Whoever installs `test` can run all tests but those that compare with other libraries."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("keras", "equinox", "superpixels", "dataset", "export"):
        assert set(extras[name]) <= set(extras["test"])
