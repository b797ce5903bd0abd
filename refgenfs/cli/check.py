"""What a check of `doctor` looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from refgenfs.config import Config

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found; `advice` says what to do where something is wrong."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at, so that tests can show them another machine."""

    config: Config
    environ: Mapping[str, str]
    uid: int
    fuse_device: Path = Path("/dev/fuse")
    fuse_conf: Path = Path("/etc/fuse.conf")
    sysfs: Path = Path("/sys")
