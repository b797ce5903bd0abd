"""The files that a configuration names: whether they are there, and for their owner only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from refgenfs.config.model import Config
from refgenfs.config.sources import WebSource
from refgenfs.paths import home_dir


def file_problems(config: Config) -> list[str]:
    """Return what is wrong with files that a configuration names, one line each."""
    page = config.web.token_file
    problems = [f"web.token_file: {problem}"] if page and (problem := token_problem(page)) else []
    for source in config.source:
        if not isinstance(source, WebSource):
            continue
        found = [(name, token_problem(path)) for name, path in secret_files(source)]
        if source.ca_file and not os.access(source.ca_file, os.R_OK):
            found.append(("ca_file", f"{source.ca_file} can't be read by this user"))
        problems += [f"source.{source.name}.{name}: {problem}" for name, problem in found if problem]
    return problems


def secret_files(source: WebSource) -> list[tuple[str, Path]]:
    """Return the files with secrets that a source names, by the keys that name them."""
    named = [(name, getattr(source, name)) for name in ("token_file", "password_file", "netrc_file")]
    found = [(name, path) for name, path in named if path]
    if source.netrc and source.netrc_file is None:
        found.append(("netrc", Path(home_dir(os.environ, os.geteuid()), ".netrc")))
    return found


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
