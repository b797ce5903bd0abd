"""A page's commands as one shell session: the script that types them, and whether what came is what the page says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.documents import Block, Command, Hidden, Step, commands, split

FOLLOWED_SECONDS = 3  # how long a command runs that a reader would end with Ctrl-C
STEP = "\x1e"  # begins the lines that a session writes about itself

# These go on until somebody ends them, so they are ended.
_FOLLOWS = re.compile(r"refgenfs trace\b|refgenfs (-\S+ )*mount\b.* (-f|--foreground)\b|journalctl\b.* -f\b|watch\b")

# root finds a sudo that has nothing to do; what reads a terminal finds none.
_PRELUDE = """\
cd
if ((EUID == 0)); then sudo() { while [[ ${1-} == -* ]]; do shift; done; "$@"; }; fi
exec </dev/null
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """One command, its exit status, and all that it printed."""

    command: Command
    status: int
    printed: str


def typed(steps: Sequence[Step], world: str) -> list[Command | Block]:
    """Return what is done in one world, in order: files that are written (as blocks), and commands."""
    done: list[Command | Block] = []
    for step in steps:
        if step.world != world:
            continue
        if isinstance(step, Hidden):
            done += [Command(f"{step.document}:{step.line}", text) for _, text in split(step.text)]
        elif step.file:
            done.append(step)
        elif not step.test:
            done += commands(step)
    return done


def script(todo: Sequence[Command | Block]) -> str:
    """Return a bash script that does it, and stops at the first command that fails and is not shown to fail."""
    return _PRELUDE + "".join(_lines(number, item) for number, item in enumerate(todo))


def _lines(number: int, item: Command | Block) -> str:
    if isinstance(item, Block):
        path = item.file if item.file.startswith("~") else shlex.quote(item.file)
        return f'mkdir -p "$(dirname {path})"\nprintf %s {shlex.quote(item.text)} >{path}\n'
    body = item.text
    if _FOLLOWS.match(body):
        inside = f"timeout -k 10 -s INT {FOLLOWED_SECONDS} bash -c {shlex.quote(body)}"
        body = f"{inside}; case $? in 0 | 124) ;; *) false ;; esac"
    stop = "((status)) && exit 0\n" if item.shown is None else ""
    return (
        f"printf '\\n{STEP}begin {number}\\n'\n{{\n{body}\n}}\nstatus=$?\n"
        f"printf '\\n{STEP}end {number} %s\\n' $status\n{stop}"
    )


def ran(todo: Sequence[Command | Block], printed: str) -> list[Ran]:
    """Return the commands that a session began, from what it printed; one that never ended has status -1."""
    found = []
    for part in printed.split(f"\n{STEP}begin ")[1:]:
        head, _, rest = part.partition("\n")
        output, _, end = rest.partition(f"\n{STEP}end ")
        command = todo[int(head)]
        assert isinstance(command, Command)
        status = int(end.split()[1]) if end else -1
        found.append(Ran(command, status, output))
    return found


def judge(done: Ran, home: str) -> str | None:
    """Return what is wrong with a command that ran, or None."""
    told = f"{done.command.place}: {done.command.text}\nexit {done.status}\n{done.printed}"
    if done.status < 0:
        return f"{told}\nit has not ended"
    if done.command.shown is None or not done.command.shown.strip():
        return told if done.status else None
    if not fits(done.command.shown, done.printed.replace(home, "~")):
        return f"{told}\nbut the page shows\n{done.command.shown}"
    return None


# --- output -------------------------------------------------------------------------------------------------------

_UNITS = "B|[kKMGT]i?B|ms|µs|s|min|h|%"


def loosely(line: str) -> str:
    """Return a line without what differs from one run to the next: numbers, sizes, times, digests, columns."""
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "#", line)
    line = re.sub(r"(?:(?<!\w)[-+])?\d+(?:[.,:]\d+)*", "#", line)
    line = re.sub(rf"# ?(?:{_UNITS})(/s)?(?!\w)", "#", line)
    line = re.sub(r"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +#", "#", line)
    return " ".join(line.split())


def fits(shown: str, printed: str) -> bool:
    """Return whether what was printed is what is shown, loosely; `…` is any text, on a line of its own any lines."""
    pattern = ""
    for line in filter(None, map(loosely, shown.splitlines())):
        pattern += r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
    text = "".join(f"{line}\n" for line in map(loosely, printed.splitlines()) if line)
    return re.fullmatch(pattern, text) is not None
