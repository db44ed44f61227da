"""YAML files of users, read so that a mistake in them is named."""

from pathlib import Path
from typing import Any

import yaml

from sb3_attention_ac.compare.errors import CompareError


def read_mapping(path: Path, purpose: str) -> dict[str, Any]:
    """
    :param path: YAML file
    :param purpose: What the file must map to what, for the message, e.g. ``"environments to reference scores"``
    :return: What it holds, by name
    :raises CompareError: If it cannot be read, is not YAML, has a key twice, or is not a mapping
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _refuse_twice(node, set())
        entries = None if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CompareError(f"{path} must map {purpose}; it cannot be read: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise CompareError(f"{path} must map {purpose}; it holds {'nothing' if entries is None else repr(entries)[:80]}.")
    return {str(name): entry for name, entry in entries.items()}


def read_entries(path: Path, purpose: str) -> dict[str, dict[str, Any]]:
    """
    :param path: YAML file
    :param purpose: What the file must map to what
    :return: Its entries by name, see :func:`read_mapping`
    :raises CompareError: Also if an entry is not a mapping
    """
    entries = read_mapping(path, purpose)
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise CompareError(f"{path} must map {purpose}; at {name!r} it has {entry!r}, not a mapping.")
    return entries


def _refuse_twice(node: yaml.Node | None, seen: set[int]) -> None:
    """YAML forbids keys that stand twice in a mapping; PyYAML takes the last one, without a word."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))
    if not isinstance(node, yaml.MappingNode):
        for item in node.value:
            _refuse_twice(item, seen)
        return
    keys = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            if (key.tag, key.value) in keys:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            keys.add((key.tag, key.value))
        _refuse_twice(value, seen)
