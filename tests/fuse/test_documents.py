"""The documentation's commands, typed page by page, on a machine of its own for each, against hosts of its examples.

What a page has systemd do is in tests/system/test_documents.py; tests/unit/test_documents.py sees to it that no block
is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY
from tests.support.documents import Command, documents, parse
from tests.support.sessions import judge, ran, script, typed
from tests.support.worlds import HOMES, World, world

pytestmark = [pytest.mark.needs_fuse, pytest.mark.needs_root, pytest.mark.timeout(300)]


TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text() for path in documents()}
SESSIONS = [(page, who) for page, text in TEXTS.items() for who in HOMES if typed(parse(text, page), who)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.mark.parametrize(("page", "who"), SESSIONS)
def test_the_page_s_commands_do_what_it_says(hosts: World, page: str, who: str) -> None:
    _follow(hosts, TEXTS[page], page, who)


def _follow(hosts: World, text: str, page: str, who: str = "root") -> None:
    """Type a page's commands, and fail at the first that does not do what it says."""
    todo = typed(parse(text, page), who)
    printed = hosts.run(script(todo), who)
    done = ran(todo, printed)
    for one in done:
        if wrong := judge(one, HOMES[who]):
            pytest.fail(f"{wrong}\n\nthe end of the session:\n{printed[-3000:]}", pytrace=False)
    assert len(done) == sum(isinstance(item, Command) for item in todo), printed[-3000:]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("refgenfs list --genomes", "no such option"),
        ("refgenfs status", "no daemon is running"),
        ("curl -sf https://genomes.example.org/nothing", "exit 22"),
    ],
)
def test_what_is_wrong_in_a_page_fails(hosts: World, command: str, told: str) -> None:
    """Else the tests above would hold nothing."""
    with pytest.raises(pytest.fail.Exception, match=told):
        _follow(hosts, f"```sh\ntrue\n{command}\ntrue\n```\n", "x.md")
