"""Manual pages out of the Markdown of the documentation: the part of it that is in use, as man(7) has it.

Paragraphs, lists, terms, fences and tables of settings become macros; code and names become bold, as manual pages
write what is typed. Links are their text, for a page of a manual leads to no other file.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

_WIDTH = 78  # of a line of the source; mandoc asks for less than 80
_SPECIAL = {"\\": r"\e", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
BULLET = r"\(bu"
_LETTERS = {"…": r"\&...", "–": r"\(en", "×": r"\(mu", "µ": r"\(mc", "→": r"\(->", "≥": r"\(>=", "≤": r"\(<="}
_INLINE = re.compile(r"(`[^`]+`|\*\*[^*]+\*\*|(?<![\w*])\*[^*\s][^*]*\*(?!\w)|<https?://[^>]+>)")
_LINK = re.compile(r"\[((?:`[^`]*`|[^\]`])+)\]\((?:[^()]|\([^)]*\))*\)")


def literal(text: str) -> str:
    """Return text that is typed as it stands: hyphens are minus signs, quotes are straight."""
    found = "".join(_SPECIAL.get(char, _LETTERS.get(char, char)) for char in text).replace("-", r"\-")
    assert found.isascii(), text
    return found


def _prose(text: str) -> str:
    """Return text that is read; options in it are typed."""
    found = "".join(_LETTERS.get(char, r"\e" if char == "\\" else char) for char in text)
    found = re.sub(r"(?<![\w-])--?(?=\w)", lambda match: match[0].replace("-", r"\-"), found)
    found = found.replace("~", r"\(ti").replace("^", r"\(ha")
    assert found.isascii(), text
    return found


def inline(text: str) -> str:
    """Return a text of Markdown, which may have code, emphasis and links, with font escapes."""
    parts = []
    for part in _INLINE.split(_LINK.sub(r"\1", text).replace("\\|", "|")):
        if part.startswith("`"):
            parts.append(rf"\fB{literal(part[1:-1])}\fR")
        elif part.startswith("**"):
            parts.append(rf"\fB{_prose(part[2:-2].replace('`', ''))}\fR")
        elif part.startswith("*") and len(part) > 2:
            parts.append(rf"\fI{_prose(part[1:-1])}\fR")
        elif part.startswith("<http"):
            parts.append(literal(part[1:-1]))
        else:
            parts.append(_prose(part))
    return "".join(parts)


def lines(text: str) -> Iterator[str]:
    """Yield the lines of a paragraph's source: a sentence begins one, and no macro is made by accident."""
    for sentence in re.split(r"(?<=[.!?:;]) (?=[A-Z\\])", inline(" ".join(text.split()))):
        for line in textwrap.wrap(sentence, _WIDTH, break_long_words=False, break_on_hyphens=False):
            yield rf"\&{line}" if line[0] in ".'" else line


def paragraph(text: str) -> list[str]:
    """Return a paragraph."""
    return [".PP", *lines(text)]


def entry(term: str, text: str) -> list[str]:
    """Return an entry of a list of terms; the term has its escapes already."""
    return [".TP", term, *(lines(text) if text else [r"\&"])]


def example(rows: Iterable[str]) -> list[str]:
    """Return lines that stand as they are, indented."""
    shown = [literal(row) for row in rows]
    return [".PP", ".RS 4", ".EX", *(rf"\&{row}" if row[:1] in {".", "\\"} else row for row in shown), ".EE", ".RE"]


def cells(row: str) -> list[str]:
    """Return the cells of a row of a table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def blocks(text: str) -> Iterator[list[str]]:
    """Yield the source of each block of a text: paragraphs, small headings, lists, terms, fences, tables."""
    for block in re.findall(r"^```[\s\S]*?^```$|(?:^(?!```).+\n?)+", text, re.MULTILINE):
        rows = block.strip("\n").splitlines()
        if rows[0].startswith("```"):
            yield example(rows[1:-1])
        elif rows[0].startswith("<!--"):
            continue
        elif rows[0].startswith("|"):
            yield table([cells(row) for row in rows])
        elif len(rows) > 1 and rows[1].startswith(": "):  # a term, and what it is
            yield entry(inline(rows[0]), " ".join(rows[1:])[2:])
        elif rows[0].startswith("### "):
            yield [".PP", inline(f"**{rows[0][4:]}**")]
        elif re.match(r"[-*] |\d+\. ", rows[0]):
            for item in re.split(r"\n(?=[-*] |\d+\. )", "\n".join(rows)):
                mark, _, told = item.partition(" ")
                yield [f".IP {mark if mark[0].isdigit() else BULLET} 4", *lines(told)]
        else:
            yield paragraph(" ".join(rows))


def table(rows: list[list[str]]) -> list[str]:
    """Return a table as a list of terms; a setting's has its type, default and example as well."""
    head, _, *body = rows
    out: list[str] = []
    for row in body:
        told = dict(zip(head, row, strict=True))
        if "type" not in told:
            out += entry(inline(row[0]), row[1])
            continue
        end = "" if told["default"] in {"(needed)", "none"} else f" Default: {told['default']}."
        needed = " Needed." if told["default"] == "(needed)" else ""
        out += entry(f"{inline(told['key'])} (\\fI{_prose(told['type'].replace('`', ''))}\\fR)", told["meaning"])
        out += lines(f"{needed}{end} Example: {told['example']}.")
    return out
