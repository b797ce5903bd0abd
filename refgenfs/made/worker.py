"""The process that makes indices: data on standard input, indices into the files whose descriptors are named.

Run by its path, as `python -I worker.py MAKER MEMORY LARGEST SECONDS FD…`: it imports nothing of ours, opens no file
of anybody's, and has no descriptor but those. htslib, as pysam has it, reads data in order from "-" and writes an
index to the path it is given. `samtools index` and `faidx`, `tabix` and `bcftools index` are these very functions
behind their options; pysam's own call of tabix opens its file twice, which a pipe can't bear, and those of samtools
write temporary files. Exit code 3: the data can be had no index of, and standard error says why.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress

REFUSED = 3
CSI_SHIFT = 14  # as `samtools index -c`, `tabix -C` and `bcftools index` have it
DESCRIPTORS = 64
NICE = 5
FIRST_TO_GO = 500  # oom_score_adj: the daemon, and whoever reads, can do without an index


class TabixPreset(ctypes.Structure):
    """`tbx_conf_t` of htslib/tbx.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ("preset", "sc", "bc", "ec", "meta_char", "line_skip")]


def limit(memory: int, largest: int, seconds: int) -> None:
    """Bound what this process may take: bytes of memory, bytes of a file, seconds of processor time.

    Where memory ends all the same, it is the first to be killed.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(FIRST_TO_GO))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    os.nice(NICE)


def make(maker: str, paths: list[bytes]) -> int:
    """Make the indices of one maker; return what htslib returns, 0 where all went well."""
    if maker == "dict":
        return make_dict(paths[0])
    import pysam.libchtslib as libchtslib

    hts = ctypes.CDLL(libchtslib.__file__)
    kind, _, form = maker.rpartition(".")
    shift = CSI_SHIFT if form == "csi" else 0
    if maker == "faidx":
        return int(hts.fai_build3(b"-", paths[0], paths[1] if len(paths) > 1 else None))
    if maker in ("bai", "crai") or kind == "bam":
        return int(hts.sam_index_build3(b"-", paths[0], shift, 0))
    if kind == "bcf":
        return int(hts.bcf_index_build3(b"-", paths[0], shift, 0))
    preset = TabixPreset.in_dll(hts, f"tbx_conf_{kind}")
    return int(hts.tbx_index_build3(b"-", paths[0], shift, 0, ctypes.byref(preset)))


def make_dict(path: bytes) -> int:
    """Make a sequence dictionary, without UR: one that is read from a pipe has no place."""
    from pysam import samtools
    from pysam.utils import SamtoolsError

    try:
        samtools.dict("-o", os.fsdecode(path), "-", catch_stdout=False)
    except SamtoolsError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Limit this process, then make what is asked for."""
    maker, memory, largest, seconds, *descriptors = arguments
    limit(int(memory), int(largest), int(seconds))
    done = make(maker, [f"/proc/self/fd/{number}".encode() for number in descriptors])
    sys.stderr.flush()
    return 0 if done == 0 else REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
