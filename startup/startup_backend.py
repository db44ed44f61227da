"""
Build backend (PEP 517 and PEP 660): setuptools, plus the start-up files at the root of the wheel.

setuptools has no option for files that land directly in ``site-packages`` in regular *and* editable installations,
so its finished wheels are rewritten.
"""

import csv
import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

STARTUP_FILES = ("_sb3_attention_ac_zoo.py", "sb3_attention_ac_zoo.pth", "sb3_attention_ac_zoo.start")


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """
    Build a wheel.

    :param wheel_directory: Where to write the wheel
    :param config_settings: Settings of the build front end
    :param metadata_directory: Result of ``prepare_metadata_for_build_wheel``
    :return: File name of the wheel
    """
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    add_startup_files(Path(wheel_directory, name))
    return name


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """
    Build an editable wheel.

    :param wheel_directory: Where to write the wheel
    :param config_settings: Settings of the build front end
    :param metadata_directory: Result of ``prepare_metadata_for_build_editable``
    :return: File name of the wheel
    """
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    add_startup_files(Path(wheel_directory, name))
    return name


def add_startup_files(wheel: Path) -> None:
    """
    Add the start-up files and their RECORD lines to a finished wheel.

    :param wheel: Path of the wheel, which is rewritten
    """
    with zipfile.ZipFile(wheel) as source:
        contents = {entry.filename: (entry, source.read(entry)) for entry in source.infolist()}
    record_name = next((name for name in contents if name.endswith(".dist-info/RECORD")), None)
    if record_name is None:
        raise ValueError(f"No RECORD in {wheel}: not a wheel")
    # RECORD is the last entry of a wheel
    record, text = contents.pop(record_name)
    lines = io.StringIO(newline="")
    lines.write(text.decode())
    writer = csv.writer(lines, lineterminator="\n")
    for name in STARTUP_FILES:
        content = Path(__file__).with_name(name).read_bytes()
        digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(content)])
        contents[name] = _entry_like(record, name), content
    contents[record_name] = record, lines.getvalue().encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for entry, content in contents.values():
            target.writestr(entry, content)


def _entry_like(record: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    # Date and permissions of setuptools' own files, which keeps the wheel reproducible
    entry = zipfile.ZipInfo(name, record.date_time)
    entry.compress_type = record.compress_type
    entry.external_attr = record.external_attr
    return entry
