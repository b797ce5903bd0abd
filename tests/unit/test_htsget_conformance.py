"""The ranges that htsget-search gives for its own test files: one row of its table is one test."""

from __future__ import annotations

from pathlib import Path

import pytest

from refgenfs.core.errors import ReferenceNotFound
from refgenfs.core.htsget.model import Class
from tests.support.htsfiles import Files, shown

pytestmark = pytest.mark.needs_data

BAM_END, CRAM_END = "2596771-2596798", "1672410-1672447"
BAM, CRAM = "bam/htsnexus_test_NA12878.bam", "cram/htsnexus_test_NA12878.cram"
CANCER_VCF, SPEC_VCF = "vcf/sample1-bcbio-cancer.vcf.gz", "vcf/spec-v4.3.vcf.gz"
CANCER_BCF, SPEC_BCF = "bcf/sample1-bcbio-cancer.bcf", "bcf/spec-v4.3.bcf"
SUFFIXES = {"bam": ".bai", "cram": ".crai", "vcf": ".tbi", "bcf": ".csi"}
WHOLE, HEADER = "(whole)", "(header)"

# Regions are 1-based and closed here, as samtools writes them; the table's are 0-based and half-open.
ROWS = [
    (BAM, True, WHOLE, "0-2596798 –"),
    (BAM, True, "*", "0-4667 H; 2060795-2596798 B"),
    (BAM, True, "11", f"0-996014 –; {BAM_END} –"),
    (BAM, True, "20", f"0-4667 H; 977196-2128165 B; {BAM_END} B"),
    (BAM, True, "11:5015001-5050000",
     f"0-4667 H; 256721-647345 B; 824361-842100 B; 977196-996014 B; {BAM_END} B"),
    (BAM, False, "11:5015001-5050000", f"0-4667 H; 256721-1065951 B; {BAM_END} B"),
    (BAM, True, "11:5015001-", f"0-4667 H; 256721-996014 B; {BAM_END} B"),
    (BAM, True, "11:4999977-5003981",
     f"0-273085 –; 499249-574358 –; 627987-647345 –; 824361-842100 –; 977196-996014 –; {BAM_END} –"),
    (BAM, True, HEADER, "0-4667 H"),
    (BAM, True, "22", f"0-4667 H; {BAM_END} B"),
    (CRAM, False, WHOLE, "0-1672447 –"),
    (CRAM, False, "*", "0-6133 H; 1324614-1672447 B"),
    (CRAM, False, "11", f"0-625727 –; {CRAM_END} –"),
    (CRAM, False, "20", f"0-6133 H; 625728-1324613 B; {CRAM_END} B"),
    (CRAM, False, "11:5000001-5050000", f"0-480537 –; {CRAM_END} –"),
    (CRAM, False, "11:5000001-5100000", f"0-625727 –; {CRAM_END} –"),
    (CRAM, False, "11:5000001-", f"0-625727 –; {CRAM_END} –"),
    (CRAM, False, HEADER, "0-6133 H"),
    (CANCER_VCF, True, WHOLE, "0-3493 –"),
    (CANCER_VCF, True, "chrM:152-153", "0-3493 –"),
    (SPEC_VCF, True, WHOLE, "0-850 –"),
    (SPEC_VCF, True, "20", "0-850 –"),
    (SPEC_VCF, True, HEADER, "0-822 H"),
    (CANCER_BCF, True, WHOLE, "0-3557 –"),
    (CANCER_BCF, True, "chrM:152-153", "0-3557 –"),
    (CANCER_BCF, True, "chrM:152-", "0-3557 –"),
    (SPEC_BCF, True, "20", "0-977 –"),
    (SPEC_BCF, True, HEADER, "0-949 H"),
]  # fmt: skip


def files_of(data_dir: Path, name: str, *, gzi: bool) -> Files:
    path = data_dir / "data/htsget/htsget-rs" / name
    return Files.read(path, SUFFIXES[name.partition("/")[0]], gzi=gzi)


@pytest.mark.parametrize(("name", "gzi", "region", "ranges"), ROWS)
def test_ranges_are_those_of_htsget_search(data_dir: Path, name: str, gzi: bool, region: str, ranges: str) -> None:
    files = files_of(data_dir, name, gzi=gzi)
    if region == HEADER:
        assert shown(files.search(class_=Class.HEADER)) == ranges
    else:
        assert shown(files.search(*([] if region == WHOLE else [region]))) == ranges


@pytest.mark.parametrize(("name", "region"), [(BAM, "25"), (SPEC_VCF, "chr1"), (SPEC_BCF, "chr1")])
def test_a_reference_that_is_unknown(data_dir: Path, name: str, region: str) -> None:
    with pytest.raises(ReferenceNotFound, match=f"no reference '{region}'"):
        files_of(data_dir, name, gzi=True).search(region)
