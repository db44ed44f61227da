"""
Start-up hook that makes ``python -m rl_zoo3.train --algo aac`` work without changes to RL Zoo.

``sb3_attention_ac_zoo.pth`` (and ``sb3_attention_ac_zoo.start`` from Python 3.15 on, PEP 829) call ``install()``
at interpreter start. It only adds a lazy import finder: nothing is imported until RL Zoo itself is, and then
``sb3_attention_ac.zoo.on_import()`` does the actual work. RL Zoo offers no plugin mechanism of its own.

Set the environment variable ``SB3_ATTENTION_AC_ZOO=0`` to switch the hook off.
"""

import os
import sys

TYPE_CHECKING = False  # importing typing would cost more than the whole hook
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TARGETS = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")


class ZooFinder:
    """Import finder that calls ``sb3_attention_ac.zoo.on_import()`` after each module of ``TARGETS`` was executed."""

    def __init__(self) -> None:
        self.pending = set(TARGETS)
        self.busy: set[str] = set()

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """
        Let the other finders look for a module of RL Zoo, and have its loader report back.

        :param name: Fully qualified name of the module
        :param path: Search path of the parent package
        :param target: Module object that is being reloaded, if any
        :return: The spec found by the other finders, ``None`` for modules that are not of interest
        """
        # Other finders may ask the whole import system again for the same name
        if name not in self.pending or name in self.busy:
            return None
        self.busy.add(name)
        try:
            spec = self._find_elsewhere(name, path, target)
        finally:
            self.busy.discard(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._report_execution(spec)
        return spec

    def _find_elsewhere(self, name: str, path: "Sequence[str] | None", target: "ModuleType | None") -> "ModuleSpec | None":
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                return spec
        return None

    def _report_execution(self, spec: "ModuleSpec") -> None:
        # An attribute of the loader instance keeps its type, and with it inspect, runpy and zipimport, unchanged
        loader: Any = spec.loader

        def exec_module(module: "ModuleType") -> None:
            # Loaders of zip files are shared: the next module must find the original method
            vars(loader).pop("exec_module", None)
            loader.exec_module(module)
            if module.__name__ == spec.name:
                self._on_import(module)

        loader.exec_module = exec_module

    def _on_import(self, module: "ModuleType") -> None:
        name = module.__name__
        if name not in self.pending:
            return
        self.pending.discard(name)
        try:
            from sb3_attention_ac.zoo import on_import

            on_import(name, module)
        except Exception as error:
            # RL Zoo must work for everybody else, whatever is broken here
            self.pending.clear()
            _warn(error)
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)


def _warn(error: Exception) -> None:
    # The package was removed without its start-up files (e.g. deleted checkout of an editable installation)
    if isinstance(error, ModuleNotFoundError) and error.name == "sb3_attention_ac":
        return
    # Printed, as warnings.warn would raise inside of RL Zoo's import under `python -W error`
    print(
        f"sb3_attention_ac: WARNING: 'aac' could not be registered in rl_zoo3 ({type(error).__name__}: {error}). "
        "The other algorithms are not affected.",
        file=sys.stderr,
    )


def install() -> None:
    """Add the finder, once: in a virtual environment Python processes the start-up files twice."""
    if os.environ.get("SB3_ATTENTION_AC_ZOO") == "0":
        return
    if not any(isinstance(finder, ZooFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ZooFinder())
