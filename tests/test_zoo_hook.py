"""The start-up hook, in fresh interpreters with stand-ins for RL Zoo and for the package: fast, without torch."""

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

STARTUP = Path(__file__).parents[1] / "startup"
TARGETS = ["rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager"]

STAND_INS = {
    "rl_zoo3/__init__.py": "from rl_zoo3.utils import ALGOS",
    "rl_zoo3/utils.py": "ALGOS = {'ppo': object}",
    "rl_zoo3/hyperparams_opt.py": "",
    "rl_zoo3/exp_manager.py": "import rl_zoo3.hyperparams_opt",
    "sb3_attention_ac/__init__.py": "",
    "sb3_attention_ac/zoo.py": """
        calls = []
        def on_import(name, module):
            calls.append(name)
            if name == "rl_zoo3.utils":
                module.ALGOS["aac"] = object
    """,
}
INSTALL = "import sys, _sb3_attention_ac_zoo as hook; hook.install()\n"
FINDERS = "[finder for finder in sys.meta_path if type(finder).__name__ == 'ZooFinder']"


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    write(tmp_path, STAND_INS)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(content))


def run(path: Path, code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code after ``install()``; ``-S`` keeps a hook that is installed in the tested environment out."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(STARTUP)]), **environment}
    code = INSTALL + textwrap.dedent(code)
    command = [sys.executable, "-S", *options, "-c", code]
    # The working directory is on the path too, and must not offer the real package
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=STARTUP, timeout=60)


def check(path: Path, code: str, *options: str, **environment: str) -> None:
    process = run(path, code, *options, **environment)
    assert (process.returncode, process.stderr) == (0, "")


def check_one_warning(process: subprocess.CompletedProcess[str], reason: str) -> None:
    assert process.returncode == 0, process.stderr
    assert process.stderr == (
        f"sb3_attention_ac: WARNING: 'aac' could not be registered in rl_zoo3 ({reason}). "
        "The other algorithms are not affected.\n"
    )


def test_registers_on_import(stand_ins):
    check(stand_ins, "import rl_zoo3; assert list(rl_zoo3.ALGOS) == ['ppo', 'aac']")


def test_finder_retires_after_all_targets(stand_ins):
    check(
        stand_ins,
        f"""
        import rl_zoo3
        assert len({FINDERS}) == 1
        import rl_zoo3.exp_manager
        from sb3_attention_ac import zoo
        assert zoo.calls == {TARGETS}, zoo.calls
        assert not {FINDERS}
        """,
    )


def test_install_is_idempotent(stand_ins):
    check(stand_ins, f"hook.install(); assert len({FINDERS}) == 1 and type(sys.meta_path[0]).__name__ == 'ZooFinder'")


@pytest.mark.parametrize("value, installed", [("0", 0), ("1", 1), ("", 1)])
def test_opt_out(stand_ins, value, installed):
    check(stand_ins, f"assert len({FINDERS}) == {installed}", SB3_ATTENTION_AC_ZOO=value)


def test_nothing_is_imported_at_start(stand_ins):
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    hooked = run(stand_ins, "print(*sys.modules)")
    assert set(hooked.stdout.split()) - set(bare.stdout.split()) <= {"_sb3_attention_ac_zoo"}


def test_start_takes_little_time(stand_ins):
    process = run(
        stand_ins,
        """
        import time
        seconds = []
        for _ in range(5):
            del sys.modules["_sb3_attention_ac_zoo"]
            start = time.process_time()
            import _sb3_attention_ac_zoo
            _sb3_attention_ac_zoo.install()
            seconds.append(time.process_time() - start)
        print(min(seconds))
        """,
    )
    # About 0.0002 s of CPU, whatever else the machine does; importing typing or json would already be 20 times that
    assert float(process.stdout) < 0.004


def test_loader_and_source_are_unchanged(stand_ins):
    check(
        stand_ins,
        """
        import importlib.machinery, inspect
        import rl_zoo3.utils as utils
        assert type(utils.__spec__.loader) is importlib.machinery.SourceFileLoader
        assert "exec_module" not in vars(utils.__spec__.loader)
        assert "ALGOS" in inspect.getsource(utils)
        """,
    )


def test_reload_does_not_register_again(stand_ins):
    check(
        stand_ins,
        """
        import importlib, rl_zoo3.utils
        from sb3_attention_ac import zoo
        importlib.reload(rl_zoo3.utils)
        assert zoo.calls == ["rl_zoo3.utils"]
        """,
    )


def test_zip_import(stand_ins):
    archive = stand_ins / "packages.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name in STAND_INS:
            target.write(stand_ins / name, name)
    check(
        archive,
        f"""
        import rl_zoo3.exp_manager
        from sb3_attention_ac import zoo
        assert zoo.calls == {TARGETS}, zoo.calls
        assert "aac" in rl_zoo3.ALGOS and ".zip" in rl_zoo3.__file__
        assert "exec_module" not in vars(rl_zoo3.__spec__.loader)
        """,
    )


def test_reentrant_finder(stand_ins):
    # Other tools (debuggers, lazy importers) put finders in front that ask the whole import system again
    check(
        stand_ins,
        """
        import importlib.util

        class Reentrant:
            busy = False
            def find_spec(self, name, path=None, target=None):
                if Reentrant.busy:
                    return None
                Reentrant.busy = True
                try:
                    return importlib.util.find_spec(name)
                finally:
                    Reentrant.busy = False

        class WithoutFindSpec:
            pass

        sys.meta_path.insert(0, Reentrant())
        sys.meta_path.append(WithoutFindSpec())
        import rl_zoo3.exp_manager
        from sb3_attention_ac import zoo
        assert sorted(zoo.calls) == sorted(set(zoo.calls)) and "aac" in rl_zoo3.ALGOS
        """,
    )


def test_find_spec_without_import(stand_ins):
    check(
        stand_ins,
        """
        import importlib.util, rl_zoo3
        assert importlib.util.find_spec("rl_zoo3.exp_manager").name == "rl_zoo3.exp_manager"
        import rl_zoo3.exp_manager
        from sb3_attention_ac import zoo
        assert zoo.calls.count("rl_zoo3.exp_manager") == 1
        """,
    )


@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["plain", "warnings_as_errors"])
@pytest.mark.parametrize(
    "zoo, reason",
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import missing_dependency", "ModuleNotFoundError: No module named 'missing_dependency'"),
        ("def on_import(name, module): module.ALGOS.add('aac')", "AttributeError: 'dict' object has no attribute 'add'"),
    ],
    ids=["broken_package", "missing_dependency", "changed_zoo"],
)
def test_failure_is_one_line(stand_ins, zoo, reason, options):
    write(stand_ins, {"sb3_attention_ac/zoo.py": zoo})
    process = run(stand_ins, f"import rl_zoo3.exp_manager; assert list(rl_zoo3.ALGOS) == ['ppo'] and not {FINDERS}", *options)
    check_one_warning(process, reason)


def test_failure_in_a_later_stage(stand_ins):
    write(
        stand_ins,
        {
            "sb3_attention_ac/zoo.py": """
                calls = []
                def on_import(name, module):
                    calls.append(name)
                    if name == "rl_zoo3.hyperparams_opt":
                        raise ValueError("no sampler")
            """
        },
    )
    process = run(
        stand_ins,
        f"import rl_zoo3.exp_manager; from sb3_attention_ac import zoo; assert zoo.calls == {TARGETS[:2]}, zoo.calls",
    )
    check_one_warning(process, "ValueError: no sampler")


def test_package_missing_is_silent(stand_ins):
    shutil.rmtree(stand_ins / "sb3_attention_ac")
    check(stand_ins, "import rl_zoo3.exp_manager; assert list(rl_zoo3.ALGOS) == ['ppo']")


def test_errors_of_rl_zoo_are_untouched(stand_ins):
    write(stand_ins, {"rl_zoo3/utils.py": "import missing_dependency"})
    process = run(stand_ins, "import rl_zoo3")
    assert process.returncode == 1
    assert process.stderr.endswith("ModuleNotFoundError: No module named 'missing_dependency'\n")
    assert "WARNING" not in process.stderr


def test_import_can_be_tried_again_after_an_error_of_rl_zoo(stand_ins):
    check(
        stand_ins,
        """
        import os
        os.environ["FAIL"] = "1"
        with open(sys.path[1] + "/rl_zoo3/utils.py", "a") as file:
            file.write("\\nimport os\\nif os.environ.pop('FAIL', ''): raise ImportError('first time')")
        try:
            import rl_zoo3
        except ImportError as error:
            assert "first time" in str(error)
        import rl_zoo3
        assert "aac" in rl_zoo3.ALGOS
        """,
    )


def test_rl_zoo_missing(tmp_path):
    process = run(tmp_path, "import importlib.util; assert importlib.util.find_spec('rl_zoo3') is None; import rl_zoo3")
    assert process.stderr.endswith("ModuleNotFoundError: No module named 'rl_zoo3'\n")
