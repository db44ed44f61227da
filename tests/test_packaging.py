"""Wheels, source distribution, and the life cycle of an installation."""

import base64
import configparser
import csv
import hashlib
import io
import os
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import startup_backend

from sb3_attention_ac.compare import _requirements

ROOT = Path(__file__).parents[1]
STARTUP_FILES = ["_sb3_attention_ac_zoo.py", "sb3_attention_ac_zoo.pth", "sb3_attention_ac_zoo.start"]
SOURCES = ["setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "startup", "hyperparams", "sb3_attention_ac"]


def test_the_comparison_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_requirements, "find_spec", lambda name: None if name in ("rliable", "seaborn") else object())
    with pytest.raises(ImportError, match=r"needs rliable, seaborn, .*pip install '\.\[compare\]'"):
        _requirements.check()


def test_every_package_that_the_comparison_asks_for_is_in_its_extra() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = {line.split(">")[0].split("~")[0].strip() for line in setup["options.extras_require"]["compare"].split("\n")}
    assert set(_requirements.NEEDED) <= extra


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    process = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def build(hook: str, sources: Path, target: Path) -> Path:
    """Call a hook of the build backend as a front end does, with the installed setuptools."""
    target.mkdir(exist_ok=True)
    code = f"import startup_backend; print('built', startup_backend.{hook}({str(target)!r}))"
    output = run(sys.executable, "-c", code, cwd=sources, PYTHONPATH=str(sources / "startup"))
    return target / output.split("built ")[-1].split("\n")[0]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, as building writes into them."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", sources, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("build_wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def editable_wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_editable", sources, tmp_path_factory.mktemp("editable"))


def check_record(wheel: Path) -> list[str]:
    """Check that RECORD lists every file of a wheel once, with its hash and size, and return the names."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(set(names)) == len(names)
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        assert names[-1] == record
        lines = list(csv.reader(io.StringIO(archive.read(record).decode())))
        assert sorted(name for name, _, _ in lines) == sorted(names)
        for name, digest, size in lines:
            if name != record:
                content = archive.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={expected}", len(content)), name
    return names


def test_startup_files_have_the_same_stem():
    # From Python 3.15 on the .start file replaces the .pth file of the same name (PEP 829)
    assert startup_backend.STARTUP_FILES == tuple(STARTUP_FILES)
    assert Path(STARTUP_FILES[1]).stem == Path(STARTUP_FILES[2]).stem


def test_startup_files_call_install(monkeypatch):
    pth, start = [(ROOT / "startup" / name).read_text() for name in STARTUP_FILES[1:]]
    assert pth.count("\n") == start.count("\n") == 1
    install = pkgutil.resolve_name(start.strip())
    module = sys.modules[install.__module__]
    calls = []
    monkeypatch.setattr(module, "install", lambda: calls.append("pth"))
    exec(pth)
    assert calls == ["pth"] and install.__name__ == "install"


def test_installed_startup_files_are_current():
    # They are copies, also in an editable installation: after a change `pip install -e .` is needed
    # (not by importlib.metadata: it may find the .egg-info that an editable installation leaves in the checkout)
    for name in STARTUP_FILES:
        installed = Path(sysconfig.get_path("purelib"), name)
        assert installed.read_bytes() == (ROOT / "startup" / name).read_bytes(), f"run `pip install -e .` again: {name}"


def test_declared_packages_exist():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = config["options"]["packages"].split()
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "sb3_attention_ac").rglob("*.py")}
    declared = {Path(*package.split(".")) for package in packages}
    assert declared - {Path("sb3_attention_ac", "hyperparams")} == folders


def test_add_startup_files_needs_a_wheel(tmp_path):
    # Not a wheel: nothing may be left behind that looks like one
    with zipfile.ZipFile(tmp_path / "no.whl", "w") as archive:
        archive.writestr("module.py", "")
    before = (tmp_path / "no.whl").read_bytes()
    with pytest.raises(ValueError, match="RECORD"):
        startup_backend.add_startup_files(tmp_path / "no.whl")
    assert (tmp_path / "no.whl").read_bytes() == before


@pytest.mark.slow
def test_wheel(wheel):
    names = check_record(wheel)
    assert set(STARTUP_FILES) < set(names)
    files = [path for path in (ROOT / "sb3_attention_ac").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT).as_posix() for path in files} | {"sb3_attention_ac/hyperparams/aac.yml"} < set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sb3_attention_ac", *STARTUP_FILES}
    with zipfile.ZipFile(wheel) as archive:
        for name in STARTUP_FILES:
            assert archive.read(name) == (ROOT / "startup" / name).read_bytes()


@pytest.mark.slow
def test_editable_wheel(editable_wheel):
    assert set(STARTUP_FILES) < set(check_record(editable_wheel))


@pytest.mark.slow
def test_source_distribution(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"startup/{name}" for name in [*STARTUP_FILES, "startup_backend.py"]} < names
    assert {"hyperparams/aac.yml", "sb3_attention_ac/version.txt", "sb3_attention_ac/py.typed", "LICENSE"} < names


@pytest.mark.slow
def test_wheel_is_reproducible(wheel, sources, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = [build("build_wheel", sources, tmp_path / name).read_bytes() for name in ["first", "second"]]
    assert first == second


class Environment:
    """A new virtual environment that sees the dependencies (not the start-up files) of the current one."""

    def __init__(self, folder: Path):
        self.folder = folder
        venv.create(folder, with_pip=False)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        # site.py does not look for .pth files in folders that come from a .pth file
        (self.site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.initial_files = self.files()

    def files(self) -> set[str]:
        """Installed files, without caches."""
        names = [str(path.relative_to(self.site_packages)) for path in self.site_packages.rglob("*") if path.is_file()]
        return {name for name in names if "__pycache__" not in name}

    def pip(self, *arguments: str | Path) -> str:
        """Run pip of the current environment on this one."""
        return run(sys.executable, "-m", "pip", "--python", self.python, *arguments, cwd=self.folder)

    def install(self, *arguments: str | Path) -> None:
        """Install without asking a package index: the build tools are among the dependencies."""
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", *arguments)

    def train(self) -> str:
        """The command that RL Zoo documents, literally, but short."""
        command = "-m rl_zoo3.train --algo aac --env CartPole-v1 -n 64 --eval-freq -1".split()
        return run(self.python, *command, cwd=self.folder)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.mark.slow
def test_life_cycle_of_a_wheel(environment, wheel):
    environment.install(wheel)
    environment.install("--force-reinstall", wheel)
    output = environment.train()
    assert f"Loading hyperparameters from: {environment.site_packages}/sb3_attention_ac/hyperparams/aac.yml" in output
    assert (environment.folder / "logs" / "aac" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()
    environment.pip("uninstall", "--yes", "sb3_attention_ac")
    assert environment.files() == environment.initial_files


@pytest.mark.slow
def test_life_cycle_of_an_editable_installation(environment, sources):
    environment.install("--editable", sources)
    output = environment.train()
    assert f"Loading hyperparameters from: {sources}/hyperparams/aac.yml" in output
    environment.pip("uninstall", "--yes", "sb3_attention_ac")
    assert environment.files() == environment.initial_files


@pytest.mark.slow
def test_deleted_checkout_is_silent(environment, sources, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(sources, checkout)
    environment.install("--editable", checkout)
    shutil.rmtree(checkout)
    # A stand-in for RL Zoo: nothing of it is needed
    for name, content in {"__init__": "import rl_zoo3.utils", "utils": "ALGOS = {}"}.items():
        (tmp_path / "rl_zoo3").mkdir(exist_ok=True)
        (tmp_path / "rl_zoo3" / f"{name}.py").write_text(content)
    code = "import sys, rl_zoo3; print('_sb3_attention_ac_zoo' in sys.modules, rl_zoo3.utils.ALGOS)"
    assert run(environment.python, "-c", code, cwd=tmp_path) == "True {}\n"


@pytest.mark.slow
def test_editable_is_replaced_by_regular(environment, sources, wheel):
    environment.install("--editable", sources)
    environment.install("--force-reinstall", wheel)
    code = "from importlib.util import find_spec; print(find_spec('sb3_attention_ac').origin)"
    location = environment.site_packages / "sb3_attention_ac" / "__init__.py"
    assert run(environment.python, "-c", code, cwd=environment.folder) == f"{location}\n"
