"""YAML files of users, read so that a mistake in them is named."""

from pathlib import Path
from typing import Any

import yaml

from sb3_attention_ac.compare.errors import CompareError


class _Loader(yaml.SafeLoader):
    """YAML forbids keys that stand twice in a mapping; PyYAML takes the last one, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


def read_entries(path: Path, purpose: str) -> dict[str, dict[str, Any]]:
    """
    :param path: YAML file
    :param purpose: What the file must map to what, for the message, e.g. ``"environments to reference scores"``
    :return: Its entries by name
    :raises CompareError: If it cannot be read, is not YAML, has a key twice, or is not a mapping of mappings
    """
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CompareError(f"{path} must map {purpose}; it cannot be read: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise CompareError(f"{path} must map {purpose}; it holds {'nothing' if entries is None else repr(entries)[:80]}.")
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise CompareError(f"{path} must map {purpose}; at {str(name)!r} it has {entry!r}, not a mapping.")
    return {str(name): entry for name, entry in entries.items()}
