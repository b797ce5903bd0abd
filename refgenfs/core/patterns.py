"""Layouts by pattern: from the paths of a bucket, an index page or a folder to assets and their files.

A layout is a list of rules, `PATTERN -> KEY`, of which the first that a path fits says where the file belongs:

    {species}/{source}/{build}/Sequence/BWAIndex/{file} -> {build}/bwa_index:{source}

A `{field}` of the pattern stands for one or more characters of one folder's or file's name; where text follows it
inside of that name, for as few as will do. `{file}` comes last, alone, and stands for all the rest, folders too: it
is the file's name inside of the asset. A pattern without it is of single files, which keep the last part of their
path. A field that is written twice has one value. `{accession}` is an NCBI accession with its version
(`GCF_000001635.27`), `{refseq}` one that begins with GCF, `{genbank}` with GCA. KEY is `genome/asset` or
`genome/asset:tag`; without it, the pattern's own `{genome}`, `{asset}` and `{tag}` are the key.

What fits no rule, or would get a name that is none, is left out and counted. No two genomes are mixed: where files of
one name of a genome differ in a field that the key leaves out (iGenomes has a `build37.2` of man and one of the
mouse), the genome's name gets these fields before it: `Homo_sapiens.build37.2`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from refgenfs.core.catalog import ListedFile
from refgenfs.core.errors import IntegrityError
from refgenfs.core.keys import DEFAULT_TAG, AssetKey, is_name
from refgenfs.core.layout import is_junk

ARROW = "->"
_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FORM = '"{genome}/{asset}/{file}"'
_ACCESSIONS = {
    "accession": r"GC[AF]_[0-9]{9}\.[0-9]{1,4}",
    "refseq": r"GCF_[0-9]{9}\.[0-9]{1,4}",
    "genbank": r"GCA_[0-9]{9}\.[0-9]{1,4}",
}
LONGEST_NAME = 255  # bytes, of a folder's or file's name in Linux
EXAMPLES = 3  # of what did not fit
MOST_FILES = 500_000  # of one source; each takes about 600 bytes

# Kinds of files of an assembly at NCBI (genomes/all/README.txt there), the longer endings before what they end in:
# `…_cds_from_genomic.fna.gz` must not be taken for the genome of an assembly `…_cds_from`.
_NCBI_FILES = (
    ("_cds_from_genomic.fna.gz", "cds"),
    ("_rna_from_genomic.fna.gz", "rna_from_genomic"),
    ("_translated_cds.faa.gz", "translated_cds"),
    ("_genomic_gaps.txt.gz", "gaps"),
    ("_genomic.fna.gz", "fasta"),
    ("_genomic.fna.gz.fai", "fasta"),
    ("_genomic.fna.gz.gzi", "fasta"),
    ("_genomic.fna", "fasta"),
    ("_genomic.fna.fai", "fasta"),
    ("_genomic.gff.gz", "gff"),
    ("_genomic.gtf.gz", "gtf"),
    ("_genomic.gbff.gz", "gbff"),
    ("_rna.fna.gz", "rna"),
    ("_rna.gbff.gz", "rna_gbff"),
    ("_protein.faa.gz", "protein"),
    ("_protein.gpff.gz", "protein_gpff"),
    ("_rm.out.gz", "repeatmasker"),
    ("_feature_table.txt.gz", "feature_table"),
    ("_assembly_report.txt", "assembly_report"),
    ("_assembly_stats.txt", "assembly_stats"),
)
# Folders of a build in iGenomes, by what refgenie calls such assets where it has them.
_IGENOMES_FOLDERS = (
    ("Sequence/WholeGenomeFasta", "fasta"),
    ("Sequence/BWAIndex", "bwa_index"),
    ("Sequence/BWAmem2Index", "bwa_mem2_index"),
    ("Sequence/Bowtie2Index", "bowtie2_index"),
    ("Sequence/BowtieIndex", "bowtie_index"),
    ("Sequence/STARIndex", "star_index"),
    ("Sequence/BismarkIndex", "bismark_index"),
    ("Sequence/AbundantSequences", "abundant_sequences"),
    ("Sequence/Chromosomes", "chromosomes"),
    ("Sequence/dragmap", "dragmap_index"),
    ("Annotation/Genes", "genes"),
    ("Annotation/SmallRNA", "small_rna"),
    ("Annotation/Variation", "variation"),
    ("Annotation/intervals", "intervals"),
    ("Annotation/Germline_Resource", "germline_resource"),
    ("Annotation/GermlineResource", "germline_resource"),
    ("Annotation/Control-FREEC", "control_freec"),
    ("Annotation/GATKBundle", "gatk_bundle"),
)
_BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "plain": ("{genome}/{asset}/{file}",),
    "igenomes": tuple(
        f"{{species}}/{{source}}/{{build}}/{folder}/{{file}} -> {{build}}/{asset}:{{source}}"
        for folder, asset in _IGENOMES_FOLDERS
    ),
    # RefSeq's before GenBank's, for the tag of the first rule is an asset's default.
    "ncbi": tuple(
        f"{folder.format(kind)}{{{kind}}}_{{build}}{ending} -> {{build}}/{asset}:{{{kind}}}"
        for kind in ("refseq", "genbank")
        for folder in ("", "{{{}}}_{{build}}/")
        for ending, asset in _NCBI_FILES
    ),
}
LAYOUTS = tuple(sorted(_BUILT_IN))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file belongs: its key, its name inside of the asset, and what of its path the key leaves out."""

    key: AssetKey
    name: str
    rule: int  # which of the layout's
    rest: tuple[str, ...] = ()


class Layout:
    """Rules, in order. `parse` makes one, or raises ValueError with what is wrong."""

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self._rules = rules

    @classmethod
    def parse(cls, text: str | Sequence[str]) -> Layout:
        """Return a layout by its name (`LAYOUTS`), or of a rule or several."""
        if isinstance(text, str):
            lines = _BUILT_IN.get(text.strip())
            if lines is None and "{" not in text and ARROW not in text:
                known = ", ".join(f'"{name}"' for name in LAYOUTS)
                raise ValueError(f"{text!r} is no layout; write {known}, or a pattern like {_FORM}")
            text = lines or (text,)
        if not text:
            raise ValueError(f"a layout without a rule; write one like {_FORM}")
        return cls([_Rule.parse(line) for line in text])

    def place(self, path: str) -> Place | None:
        """Return where the file at `path` (relative, with '/' between names) belongs; None: it fits no rule."""
        for number, rule in enumerate(self._rules):
            found = rule.match(path)
            if found is not None:
                return _checked(rule.place(found, path, number))
        return None


@dataclass(frozen=True)
class _Rule:
    """A pattern as a regular expression, and the key as text with fields in it."""

    pattern: re.Pattern[str]
    genome: str
    asset: str
    tag: str
    begin: str  # what every path that fits begins with
    end: str  # and ends with

    @classmethod
    def parse(cls, line: str) -> _Rule:
        pattern, arrow, key = (part.strip() for part in line.partition(ARROW))
        compiled, fields = _compile(pattern, line)
        if arrow:
            genome, asset, tag = _parse_key(key, line)
        else:
            genome, asset, tag = "{genome}", "{asset}", "{tag}" if "tag" in fields else ""
        for field in _FIELD.findall(f"{genome}/{asset}:{tag}"):
            if field not in fields:
                hint = "" if arrow else f", or a key: {pattern} {ARROW} genome/asset"
                raise ValueError(f"{line!r}: its pattern has no {{{field}}}; write it there{hint}")
        tag = "" if tag == DEFAULT_TAG else tag
        return cls(compiled, genome, asset, tag, pattern.partition("{")[0], pattern.rpartition("}")[2])

    def match(self, path: str) -> re.Match[str] | None:
        if not path.endswith(self.end) or not path.startswith(self.begin):
            return None
        return self.pattern.fullmatch(path)

    def place(self, found: re.Match[str], path: str, number: int) -> Place:
        values = found.groupdict()
        tag = self.tag.format_map(values)
        key = AssetKey(
            self.genome.format_map(values),
            self.asset.format_map(values),
            None,
            tag if tag and tag != DEFAULT_TAG else None,
        )
        name = values["file"] if "file" in values else path.rpartition("/")[2]
        return Place(key, name, number, tuple(values[field] for field in self._left_out))

    @cached_property
    def _left_out(self) -> tuple[str, ...]:
        used = set(_FIELD.findall(f"{self.genome}/{self.asset}:{self.tag}"))
        return tuple(field for field in self.pattern.groupindex if field != "file" and field not in used)


def _compile(pattern: str, line: str) -> tuple[re.Pattern[str], set[str]]:
    """Return a pattern as an expression, and its fields; raise ValueError.

    A field and the text after it are one atomic group: what a field takes is settled by the first text that fits, so
    no path, however odd, makes matching slow.
    """
    parts = pattern.split("/")
    if not pattern or "" in parts or "." in parts or ".." in parts:
        raise ValueError(f"{line!r}: a pattern is names with one '/' between them, like {_FORM}")
    fields: set[str] = set()
    compiled = []
    for number, part in enumerate(parts):
        if "{file}" in part and (part != "{file}" or number != len(parts) - 1):
            raise ValueError(f"{line!r}: {{file}} stands alone, after the last '/'")
        compiled.append(_compile_part(part, fields, line))
    return re.compile("/".join(compiled), re.DOTALL), fields


def _compile_part(part: str, fields: set[str], line: str) -> str:
    pieces = _FIELD.split(part)  # text, field, text, field, …, text
    texts, names = pieces[::2], pieces[1::2]
    if any("{" in text or "}" in text for text in texts):
        raise ValueError(f"{line!r}: a '{{' or '}}' too many; a field is written {{name}}")
    if "" in texts[1:-1]:
        raise ValueError(f"{line!r}: nothing between two fields, so where one ends is not known")
    compiled = re.escape(texts[0])
    for number, name in enumerate(names, 1):
        if _FIELD_NAME.fullmatch(name) is None:
            raise ValueError(f"{line!r}: {{{name}}} is no field; write letters a to z, digits and '_'")
        last = number == len(names)
        if name in fields:
            expression = f"(?P={name})"
        elif name == "file":
            expression = f"(?P<{name}>.+)"
        else:
            expression = f"(?P<{name}>{_ACCESSIONS.get(name) or ('[^/]+' if last else '[^/]+?')})"
        fields.add(name)
        text = re.escape(texts[number])
        compiled += expression + text if last else f"(?>{expression}{text})"
    return compiled


def _parse_key(key: str, line: str) -> tuple[str, str, str]:
    genome, slash, rest = key.partition("/")
    asset, colon, tag = rest.partition(":")
    sample = [_FIELD.sub("x", text) for text in (genome, asset, tag or "x")]
    if not slash or (colon and not tag) or "." in asset or not all(is_name(text) for text in sample):
        raise ValueError(f"{line!r}: {key!r} is no key; write genome/asset or genome/asset:tag after '{ARROW}'")
    if "{file}" in key:
        raise ValueError(f"{line!r}: {{file}} is the file's name inside of the asset, and no part of its key")
    return genome, asset, tag


def _checked(place: Place) -> Place | None:
    """Return the place if everything in it is the name that it should be."""
    key = place.key
    named = (
        is_name(key.genome) and is_name(key.asset) and "." not in key.asset and (key.tag is None or is_name(key.tag))
    )
    return place if named and is_file_name(place.name) else None


def is_file_name(name: str) -> bool:
    """Say whether a relative path can be a file's name inside of an asset: each part one that Linux can have."""
    return all(_is_part(part) for part in name.split("/"))


def _is_part(part: str) -> bool:
    if part in ("", ".", "..") or "\0" in part or is_junk(part):
        return False
    return len(part) * 4 <= LONGEST_NAME or len(part.encode(errors="surrogateescape")) <= LONGEST_NAME


_Files = dict[str, tuple[int, ListedFile]]  # by name, with the rule that put it there
_Assets = dict[tuple[str, str | None], _Files]  # by asset and tag


@dataclass(frozen=True, slots=True)
class Arranged:
    """Assets with their files by name, and of an asset's tags the default one first.

    `left_out` counts the files that have no place, and `examples` are the paths of some of them.
    """

    assets: tuple[tuple[AssetKey, tuple[ListedFile, ...]], ...]
    left_out: int
    examples: tuple[str, ...]


class Arrangement:
    """Files on their way into a layout: added one by one, in any order. `count` is how many have found a place.

    `where` says where they are, for people.
    """

    def __init__(self, layout: Layout, where: str = "") -> None:
        self.count = 0
        self._where = where
        self._layout = layout
        self._left_out = 0
        self._examples: list[str] = []
        self._found: dict[str, dict[tuple[str, ...], _Assets]] = {}  # by genome, and by what the key leaves out

    def add(self, path: str, place: str, size: int | None = None, validator: str = "", mtime: float = 0.0) -> bool:
        """Add the file at `path`, of which a `ListedFile` has the rest; say whether it belongs anywhere.

        Of two files for one place, that of the earlier rule stays; by one rule, the one that came first. Raises
        IntegrityError for more than `MOST_FILES`: what is kept of a file is kept in memory.
        """
        where = self._layout.place(path)
        if where is None:
            self._leave_out(path)
            return False
        key = where.key
        assets = self._found.setdefault(key.genome, {}).setdefault(where.rest, {})
        files = assets.setdefault((key.asset, key.tag), {})
        known = files.get(where.name)
        if known is not None:
            self._leave_out(path if known[0] <= where.rule else known[1].place)
            if known[0] <= where.rule:
                return False
        self.count += known is None
        if self.count > MOST_FILES:
            what = f"more than {MOST_FILES:,} files have a place in the layout"
            raise IntegrityError(f"{self._where}: {what}; name a part of it only (a prefix, a path, fewer rules)")
        files[where.name] = (where.rule, ListedFile(where.name, place, size, validator, mtime))
        return True

    def arranged(self) -> Arranged:
        """Return the assets of what was added.

        The default tag is that of the earliest rule, and of several the first in the order of their names.
        """
        named = [
            (genome if len(kinds) == 1 else ".".join((*rest, genome)), genome, kinds[rest])
            for genome, kinds in sorted(self._found.items())
            for rest in sorted(kinds)
        ]
        uses = Counter(name for name, _, _ in named)
        assets: list[tuple[AssetKey, tuple[ListedFile, ...]]] = []
        homeless: list[str] = []
        for name, genome, found in named:
            if name == genome or (uses[name] == 1 and is_name(name)):
                assets += _ordered(name, found)
            else:
                homeless += [file.place for files in found.values() for _, file in files.values()]
        examples = (*self._examples, *homeless)[:EXAMPLES]
        return Arranged(tuple(assets), self._left_out + len(homeless), examples)

    def _leave_out(self, path: str) -> None:
        self._left_out += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(path)


def _ordered(genome: str, assets: _Assets) -> Iterator[tuple[AssetKey, tuple[ListedFile, ...]]]:
    def order(item: tuple[tuple[str, str | None], _Files]) -> tuple[str, int, str]:
        (asset, tag), files = item
        return asset, min(rule for rule, _ in files.values()), tag or ""

    for (asset, tag), files in sorted(assets.items(), key=order):
        yield AssetKey(genome, asset, None, tag), tuple(files[name][1] for name in sorted(files))
