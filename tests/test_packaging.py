"""The package as it is installed, by `pip install -e` from a clone beside the user's own scripts, or from a wheel.

And what the project says of itself in several files.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation"]


def copied(folder):
    """A clone without its tests, in a folder of its own."""
    shutil.copytree(ROOT / "jaxcam", folder / "jaxcam", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that holds a clone, and the Python of an environment in which the clone is installed, editable."""
    folder = tmp_path_factory.mktemp("packaging")
    clone, environment = copied(folder / "jaxcam"), folder / "environment"
    venv.create(environment, with_pip=False)
    # What jaxcam depends on is found where it is, but not as an environment: its own editable installs do not count.
    [packages] = environment.glob("lib/python*/site-packages")
    own = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(own))
    command = [*PIP, "install", *OFFLINE, "--ignore-installed", "--prefix", environment, "--editable", clone]
    done = subprocess.run(command, capture_output=True, text=True)
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


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path):
    done = subprocess.run([*PIP, "wheel", *OFFLINE, "-w", tmp_path, copied(tmp_path / "clone")], capture_output=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if not name.startswith("jaxcam_xai-")}
    files = (path for path in (ROOT / "jaxcam").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert held == {path.relative_to(ROOT).as_posix() for path in files if path.name != "README.md"} | {
        "jaxcam/assets/README.md"  # whose the photograph is; the other pages are for who reads the code
    }
    assert wheel.stat().st_size < 6e6


def test_extras_that_the_tests_need_are_among_the_tests():
    """Whoever installs `test` can run all tests but those that compare with other libraries."""
    extras = PROJECT["optional-dependencies"]
    for name in ("keras", "equinox", "superpixels", "dataset", "export"):
        assert set(extras[name]) <= set(extras["test"])


def test_versions_that_stand_in_several_files_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    pinned = {each for extra in ("test", "lint") for each in PROJECT["optional-dependencies"][extra] if "==" in each}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {each for hook in hooks for each in hook["additional_dependencies"]} <= pinned
    lowest = PROJECT["requires-python"].removeprefix(">=")
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]
    assert tests["strategy"]["matrix"]["python"][0] == lowest
    assert tests["strategy"]["matrix"]["include"] == [{"python": lowest, "versions": "lowest"}]


@pytest.mark.parametrize("path", ["CONTRIBUTING.md", *sorted((ROOT / ".github").rglob("*.yml"))], ids=str)
def test_files_and_extras_that_are_named_exist(path):
    """By the page that says how to contribute, and by the workflows."""
    text = (ROOT / path).read_text()
    for name in re.findall(r"\b(?:tests|docs|jaxcam|benchmarks)/[\w/]+\.(?:py|md)\b", text):
        assert (ROOT / name).exists(), name
    for extras in re.findall(r"-e '\.\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= {*PROJECT["optional-dependencies"], "docs"}, extras
