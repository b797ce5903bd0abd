"""The files that a configuration names: whether they are there, and for their owner only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from refgenfs.config.model import Config


def file_problems(config: Config) -> list[str]:
    """Return what is wrong with files that a configuration names, one line each."""
    return [
        f"source.{source.name}.token_file: {problem}"
        for source in config.source
        if source.token_file and (problem := token_problem(source.token_file))
    ]


def token_problem(path: Path) -> str:
    """Return what is wrong with a file that holds a secret, or an empty text."""
    try:
        facts = path.stat()
    except OSError as exc:
        return f"{path} can't be read: {exc.strerror}"
    if not stat.S_ISREG(facts.st_mode) or not os.access(path, os.R_OK):
        return f"{path} can't be read by this user"
    if facts.st_mode & 0o077:
        return f"{path} can be read by others: chmod 600 {path}"
    return ""
