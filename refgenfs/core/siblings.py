"""Which files come with the one that was opened: an index is several files, and its tools read them all.

Pure: names in, names out. A rule is a set of endings of one asset class. Files belong together that stand in
one folder and whose names differ in the ending alone: `<stem>.bwt` and `<stem>.sa`, whatever the stem is (the
genome's digest at the origin, its alias on the mount).

The rules name what a run of the tool reads from its first byte to its last, in the order in which it does, as
strace has it for bwa 0.7.17, bowtie 1.3, bowtie2 2.5, hisat2 2.2, STAR 2.7 and salmon 1.10. Two were not checked so:
bwa-mem2's is after its source (FMI_search.cpp, fastmap.cpp), and the `.tab` files of STAR's, which only an index with
an annotation has, are named last. So `.rev.2.bt2` is no sibling: bowtie2 reads its head and leaves it. kallisto
and minimap2 have one file. A large file (a FASTA, a BAM, a VCF) brings its small index; the index brings
nothing, since who opens it wants a region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

# An index of a large file is one per mille of it: hg38's .fai is 20 KB, the .bai of a whole genome's BAM 9 MB.
SMALL_INDEX = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class SiblingRule:
    """What opening a file brings: where its name has one of `opens`, the files with `brings`, in that order.

    An ending that begins with a dot follows a stem, which all have in common; any other is a whole name, and in
    `brings` it may be a pattern (`*.tab`). `assets` is a pattern of names of assets. Files larger than `largest`
    bytes are not brought.
    """

    name: str
    opens: tuple[str, ...]
    brings: tuple[str, ...]
    assets: str = "*"
    largest: int | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A file that a rule is about. `folder` (with its '/') and `stem` are the same for all of its siblings."""

    rule: SiblingRule
    name: str
    folder: str
    stem: str


def _parts(letters: str, parts: str) -> tuple[str, ...]:
    return tuple(f".{part}.{letters}" for part in parts.split())


_FASTA = (".fa", ".fasta", ".fna", ".ffn", ".faa")
_TABIX = (".vcf.gz", ".vcf.bgz", ".bcf", ".bed.gz", ".gff.gz", ".gff3.gz", ".gtf.gz")
# By tool and ending of its small and its large index; the parts in the order in which they are read.
_NUMBERED = (
    ("bowtie2", ("bt2", "bt2l"), "1 2 rev.1 3 4"),
    ("bowtie", ("ebwt", "ebwtl"), "1 2 rev.1 rev.2"),
    ("hisat2", ("ht2", "ht2l"), "1 2 5 6 3 4 7 8"),
)

# What opens is no other tool's too (.pac, .ann and .amb are bwa's and bwa-mem2's).
BUILT_IN: tuple[SiblingRule, ...] = (
    SiblingRule("bwa", (".bwt", ".sa"), (".bwt", ".sa", ".ann", ".amb", ".pac")),
    SiblingRule("bwa-mem2", (".bwt.2bit.64", ".0123"), (".bwt.2bit.64", ".ann", ".amb", ".pac", ".0123")),
    *(
        SiblingRule(tool, _parts(letters, parts), _parts(letters, parts))
        for tool, endings, parts in _NUMBERED
        for letters in endings
    ),
    SiblingRule(
        "star",
        ("genomeParameters.txt", "SAindex", "Genome", "SA"),
        (
            *("genomeParameters.txt", "chrName.txt", "chrLength.txt", "chrStart.txt", "SAindex", "Genome", "SA"),
            *("sjdbInfo.txt", "exonInfo.tab", "transcriptInfo.tab", "exonGeTrInfo.tab", "geneInfo.tab"),
        ),
    ),
    SiblingRule(
        "salmon",
        ("versionInfo.json",),
        (
            *("info.json", "ctable.bin", "ctg_offsets.bin", "reflengths.bin", "complete_ref_lens.bin", "mphf.bin"),
            *("rank.bin", "seq.bin", "pos.bin", "refseq.bin", "*.bin"),
        ),
        assets="*salmon*",
    ),
    SiblingRule(
        "fasta",
        tuple(f"{ending}{packed}" for ending in _FASTA for packed in ("", ".gz", ".bgz")),
        tuple(f"{e}{more}" for e in _FASTA for more in (".fai", ".gz.fai", ".gz.gzi", ".bgz.fai", ".bgz.gzi")),
        largest=SMALL_INDEX,
    ),
    SiblingRule("alignments", (".bam", ".cram"), (".bam.bai", ".bai", ".bam.csi", ".cram.crai"), largest=SMALL_INDEX),
    SiblingRule(
        "tabix", _TABIX, tuple(f"{e}{more}" for e in _TABIX for more in (".tbi", ".csi")), largest=SMALL_INDEX
    ),
)


def recognise(rules: Sequence[SiblingRule], asset: str, name: str) -> Opening | None:
    """Return what opening a file (`name` relative to its asset's folder) means; None where no rule is about it.

    The first rule holds: one that brings nothing stands in the way of those after it.
    """
    folder, slash, base = name.rpartition("/")
    for rule in rules:
        if fnmatchcase(asset, rule.assets):
            ending = _longest(base, (*rule.opens, *rule.brings))
            if ending in rule.opens:
                return Opening(rule, name, folder + slash, base.removesuffix(ending))
    return None


def siblings(opening: Opening, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of an asset's `names` that an opened file brings, in the order in which they should come."""
    beside = sorted(
        name.removeprefix(opening.folder)
        for name in names
        if name.rpartition("/")[0] == opening.folder.rstrip("/") and name != opening.name
    )
    found: dict[str, None] = {}  # a set that keeps its order
    for ending in opening.rule.brings:
        # a stem may have any letters, so only what stands for a whole name is a pattern
        exact = opening.stem + ending if ending.startswith(".") else ""
        found.update((base, None) for base in beside if (base == exact if exact else fnmatchcase(base, ending)))
    return tuple(opening.folder + base for base in found)


def _longest(base: str, endings: Iterable[str]) -> str:
    """Return the longest of the endings that a name has: `x.rev.1.bt2` has `.rev.1.bt2`; "" for none."""
    having = [e for e in endings if (base.endswith(e) and base != e if e.startswith(".") else base == e)]
    return max(having, key=len, default="")
