"""A htsget server that behaves: real files, searched by their indices, their blocks by byte ranges."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from refgenfs.core.errors import HtsgetError
from refgenfs.core.htsget.model import Format
from refgenfs.core.htsget.request import Endpoint, parse_get, parse_post
from tests.support.htsfiles import Files
from tests.support.ticketing import TicketServer

INDICES = {Format.BAM: (".bai",), Format.CRAM: (".crai",), Format.VCF: (".tbi", ".csi"), Format.BCF: (".csi",)}


@dataclass(frozen=True)
class Sample:
    """A file that a server has under an id."""

    id: str
    format: Format
    path: Path
    index: str

    @property
    def name(self) -> str:
        """The name of its file in the tree."""
        return self.path.name

    @property
    def files(self) -> Files:
        """Its bytes and those of its index."""
        return Files.read(self.path, self.index, gzi=Path(f"{self.path}.gzi").exists())


def find_samples(data_dir: Path, scratch: Path) -> list[Sample]:
    """Return all BAM, CRAM, VCF.gz and BCF files of the shared data; missing indices are made in `scratch`."""
    endings = {".bam": Format.BAM, ".cram": Format.CRAM, ".vcf.gz": Format.VCF, ".bcf": Format.BCF}
    found = []
    for path in sorted((data_dir / "data" / "htsget").rglob("*")):
        format_ = next((one for ending, one in endings.items() if path.name.endswith(ending)), None)
        if format_ is None:
            continue
        index = next((one for one in INDICES[format_] if Path(f"{path}{one}").exists()), None)
        if index is None:
            copy = scratch / path.name
            copy.write_bytes(path.read_bytes())
            path, index = copy, ".csi"
            subprocess.run(["bcftools", "index", "-c", str(copy)], check=True, capture_output=True)
        stem = path.name.removesuffix(next(ending for ending in endings if path.name.endswith(ending)))
        found.append(Sample(f"set/{stem}", format_, path, index))
    return found


def serve_sample(
    server: TicketServer, sample: Sample, host: TicketServer | None = None, *, post: bool = True
) -> None:
    """Let a server give tickets for a file, whose blocks are at `host`. Ids of two formats meet."""
    files = sample.files
    path = f"/data/{sample.path.name}"
    (host or server).serve(path, files.data)
    others = server.tickets.get(sample.id)
    endpoint = Endpoint.READS if sample.format.is_reads else Endpoint.VARIANTS

    def ticket(request: web.BaseRequest, body: Any) -> Any:
        try:
            if body is not None and not post:
                return 405, {"detail": "Method Not Allowed"}
            parameters = urllib.parse.parse_qsl(request.query_string, keep_blank_values=True)
            if body is None:
                query = parse_get(endpoint, sample.id, parameters)
            else:
                query = parse_post(endpoint, sample.id, parameters, json.dumps(body).encode())
            if query.format is not sample.format and others is not None:
                return others(request, body)
            answer = files.run_search(query)
        except HtsgetError as exc:
            return exc.status, {"htsget": {"error": exc.error, "message": str(exc)}}
        return answer.ticket(f"{(host or server).url}{path}").to_json().encode()

    server.tickets[sample.id] = ticket


def source_toml(server: TicketServer, samples: list[Sample], *, name: str = "lab", extra: str = "") -> str:
    """Return the configuration of a source with an asset for each format: `hg38/bam`, `hg38/cram` and so on."""
    text = f'[[source]]\nname = "{name}"\ntype = "htsget"\nurl = "{server.url}"\n{extra}\n'
    for format_ in Format:
        ids = [sample.id for sample in samples if sample.format is format_]
        if ids:
            kind = "reads" if format_.is_reads else "variants"
            text += (
                f'[[source.asset]]\nkey = "hg38/{format_.lower()}"\n{kind} = {json.dumps(ids)}\n'
                f'format = "{format_}"\n'
            )
    return text
