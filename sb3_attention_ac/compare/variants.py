"""Variants of algorithms, read from short YAML files."""

import re
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any

from sb3_attention_ac.compare.errors import CompareError, unknown_name
from sb3_attention_ac.compare.names import check_algorithm
from sb3_attention_ac.compare.settings import Variant
from sb3_attention_ac.compare.yaml_files import read_entries

SHIPPED = Path(__file__).parent / "variants"


def load_variants(name_or_path: str) -> list[Variant]:
    """
    :param name_or_path: Name of a shipped file, e.g. ``"ladder"``, or path of a YAML file; with ``:name`` after it for one of
        its variants
    :return: Its variants, in the file's order
    :raises CompareError: If there is no such file or variant, or an entry is wrong
    """
    shipped = {path.stem: path for path in SHIPPED.glob("*.yml")}
    file, _, name = name_or_path.rpartition(":")
    if file and not Path(name_or_path).is_file():
        variants = {variant.name: variant for variant in load_variants(file)}
        if name not in variants:
            raise unknown_name(f"variant of {file}", name, variants)
        return [variants[name]]
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise unknown_name("variant file", name_or_path, shipped)
    entries = read_entries(path, "names of variants to their settings, see the documentation of --variants")
    return [_variant(name, entry, path) for name, entry in entries.items()]


def _variant(name: str, entry: dict[str, Any], path: Path) -> Variant:
    allowed: dict[str, tuple[type, ...]] = {"algo": (str,), "hyperparams": (dict, NoneType), "source": (str, NoneType)}
    for key in entry:
        if key not in allowed:
            raise unknown_name(f"key in the variant {name!r} of {path}", str(key), allowed)
    wrong = [key for key, types in allowed.items() if not isinstance(entry.get(key), types)]
    if wrong:
        raise CompareError(
            f"The variant {name!r} in {path} must have an `algo` (a name) and may have `hyperparams` (a mapping) and a "
            f"`source` (text); its {wrong[0]!r} is {entry.get(wrong[0])!r}."
        )
    source = entry.get("source")
    if source is not None and (path.parent / source).exists():  # a file beside this one, wherever the command is given
        source = str(path.parent / source)
    return Variant(name, entry["algo"], entry.get("hyperparams") or {}, source)


def collect_variants(algos: Iterable[str], files: Iterable[str]) -> list[Variant]:
    """
    :param algos: Names of algorithms, each a variant without changes
    :param files: Names or paths for :func:`load_variants`
    :return: All variants, checked
    :raises CompareError: If there is none, a name is given twice or cannot name a folder, or an algorithm is not known
    """
    variants = [Variant(algo, algo) for algo in algos]
    variants += [variant for file in files for variant in load_variants(file)]
    if not variants:
        raise CompareError("There is nothing to compare; name algorithms (--algos) or a file of variants (--variants).")
    seen: dict[str, Variant] = {}
    for variant in variants:
        check_algorithm(variant.algo)
        if not re.fullmatch(r"\w[\w.+=-]*", variant.name):
            raise CompareError(
                f"The variant name {variant.name!r} cannot name a folder; use letters, digits and any of . _ + = - in it."
            )
        if seen.setdefault(variant.name, variant) != variant:
            raise CompareError(f"Two different variants are called {variant.name!r}; rename one of them.")
    return list(seen.values())
