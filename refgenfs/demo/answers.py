"""What a refgenieserver answers: one `Ask` in, one `Reply` out, from a folder laid out as its archive folder.

```
ROOT/genomes.json                                      {digest: {genome_description, aliases, assets: {…}}}
ROOT/<digest>/<asset>__<tag>.tgz                       the archives
ROOT/<digest>/asset_dir_contents_<asset>__<tag>.json   the names in each
ROOT/<digest>/<asset>__<tag>/<file>                    the unpacked copies, for `remotes`
```

The paths, status codes and JSON are those of refgenieserver 0.8.0, its oddities included: they are what a client
meets. Left out: its HTML pages, build logs and recipes, and the parts of a multi-part range (the whole file is
sent, as RFC 9110 section 14.2 allows).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from refgenfs.demo.replies import Ask, Inline, Reply, file_reply, json_reply, redirect_reply, text_reply

CATALOG = "genomes.json"
DIGEST_LENGTH = 48  # refgenieserver 0.8 answers 422 to any other
S3_PREFIX = "s3://demo.invalid/"  # real servers offer one beside http; nothing is behind this one

_NAME: Final = r"\S+"  # assets, tags and seek keys
_TRUE: Final = frozenset({"1", "true", "on", "yes", "t", "y"})
_FALSE: Final = frozenset({"0", "false", "off", "no", "f", "n"})


class Catalog:
    """The folder an origin serves; `genomes.json` is read again whenever it changes."""

    def __init__(self, root: Path, *, remotes: bool, private_api: bool) -> None:
        """Serve `root`. Raises OSError or ValueError when its genomes.json is missing or not one."""
        self._root = root.resolve()
        self._remotes = remotes
        self._private_api = private_api
        self._version = (0, 0, 0)
        self._genomes: dict[str, Any] = {}
        self._load()

    def answer(self, ask: Ask, base_url: str) -> Reply:
        """Return the answer to any request; `base_url` is where the unpacked copies are said to be."""
        try:
            if self._remotes and ask.path.startswith("/files/"):
                return self._static(ask)
            return self._api(ask, base_url)
        except _Refused as refused:
            return refused.reply

    # --- the API ---

    def _api(self, ask: Ask, base_url: str) -> Reply:
        parts = ask.path.strip("/").split("/")
        if parts == ["_private_api", "genomes", "dict"] and self._private_api:
            _only_get(ask)
            return json_reply(self._load())
        if parts[:1] == ["v3"]:
            parts = parts[1:]
        endpoint = _ENDPOINTS.get(("/".join(parts[:2]), len(parts) - 2))
        if endpoint is None:
            raise _Refused(404, "Not Found")
        _only_get(ask)
        return endpoint(self, _Call(ask, parts[2:], base_url))

    def _list_genomes(self, call: _Call) -> Reply:
        return json_reply(list(self._load()))

    def _alias_dict(self, call: _Call) -> Reply:
        return json_reply({digest: genome.get("aliases", []) for digest, genome in self._load().items()})

    def _genome_attrs(self, call: _Call) -> Reply:
        (digest,) = call.validated("genome", tagged=False)
        genome = self._load().get(digest)
        if genome is None:
            raise _Refused(404, f"No such genome ({digest}) on server")
        return json_reply({"genome_description": genome.get("genome_description", "")})

    def _list_assets(self, call: _Call) -> Reply:
        if call.flag("includeSeekKeys"):
            return json_reply({digest: _seek_paths(genome["assets"]) for digest, genome in self._load().items()})
        return json_reply({digest: sorted(genome["assets"]) for digest, genome in self._load().items()})

    def _default_tag(self, call: _Call) -> Reply:
        digest, asset = call.validated("genome", "asset", tagged=False)
        return text_reply(self._tag_of(digest, asset, None))

    def _asset_attrs(self, call: _Call) -> Reply:
        digest, asset = call.validated("genome", "asset")
        tag = self._tag_of(digest, asset, call.tag)
        attrs = self._attrs(digest, asset, tag)
        if attrs is None:
            raise _Refused(404, f"No such genome/asset:tag combination ({digest}/{asset}:{tag}) on server")
        return json_reply(attrs)

    def _archive(self, call: _Call) -> Reply:
        digest, asset = call.validated("genome", "asset")
        name = f"{asset}__{self._tag_of(digest, asset, call.tag)}.tgz"
        if self._remotes:  # whether it exists there is not looked at
            return redirect_reply(f"{call.base_url}/files/{digest}/{name}")
        path = self._inside(digest, name)
        if path is None:
            raise _Refused(404, f"No such asset ({asset}) on server")
        reply = file_reply(path, call.ask)
        if reply.status < 300:
            reply.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return reply

    def _dir_contents(self, call: _Call) -> Reply:
        digest, asset = call.validated("genome", "asset")
        name = f"asset_dir_contents_{asset}__{self._tag_of(digest, asset, call.tag)}.json"
        if self._remotes:
            return redirect_reply(f"{call.base_url}/files/{digest}/{name}")
        path = self._inside(digest, name)
        if path is None:
            raise _Refused(404, f"No such asset ({asset}) on server")
        return json_reply(json.loads(path.read_bytes()))

    def _file_path(self, call: _Call) -> Reply:
        remotes = self._remote_prefixes(call.base_url)
        digest, asset, seek_key = call.validated("genome", "asset", "seek_key", remotes=tuple(remotes))
        tag = self._tag_of(digest, asset, call.tag)
        if "remoteClass" not in call.ask.query:  # its default has no value: the real server fails so
            raise _Refused(500, None)
        attrs = self._attrs(digest, asset, tag)
        if attrs is None:
            raise _Refused(404, f"No such asset ({digest}/{asset}:{tag}) on server")
        if seek_key not in attrs["seek_keys"]:
            raise _Refused(404, f"No such seek_key ({digest}/{asset}.{seek_key}:{tag}) on server")
        target = "" if seek_key == "dir" else attrs["seek_keys"][seek_key]
        prefix = remotes[call.ask.query["remoteClass"]]
        return text_reply(f"{prefix}{digest}/{asset}__{tag}/{target}")

    def _remotes_dict(self, call: _Call) -> Reply:
        if not self._remotes:  # not an empty answer: the real server fails so
            raise _Refused(500, None)
        described = {"http": "unpacked copies of the demo", "s3": "a prefix nothing is behind"}
        prefixes = self._remote_prefixes(call.base_url)
        return json_reply({name: {"prefix": prefixes[name], "description": described[name]} for name in prefixes})

    # --- what is known of the folder ---

    def _load(self) -> dict[str, Any]:
        path = self._root / CATALOG
        stat = path.stat()
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if version != self._version:
            genomes = json.loads(path.read_bytes())
            if not isinstance(genomes, dict):
                raise ValueError(f"{path} holds no JSON object of genomes")
            self._genomes, self._version = genomes, version
        return self._genomes

    def _tag_of(self, digest: str, asset: str, tag: str | None) -> str:
        """Return the tag asked for, else the default one; `default` for an asset there is none of."""
        known = self._load().get(digest, {}).get("assets", {}).get(asset, {})
        return tag or str(known.get("default_tag", "default"))

    def _attrs(self, digest: str, asset: str, tag: str) -> dict[str, Any] | None:
        assets = self._load().get(digest, {}).get("assets", {})
        attrs: dict[str, Any] | None = assets.get(asset, {}).get("tags", {}).get(tag)
        return attrs

    def _remote_prefixes(self, base_url: str) -> dict[str, str]:
        if self._remotes:
            return {"http": f"{base_url}/files/", "s3": S3_PREFIX}
        return {"http": f"{self._root}/"}

    def _inside(self, *names: str) -> Path | None:
        """Return the regular file of that name below a genome's folder, or None: nothing else is served."""
        path = self._root.joinpath(*names)
        if ".." in names or not path.is_file() or not path.resolve().is_relative_to(self._root):
            return None
        return path

    # --- the unpacked copies ---

    def _static(self, ask: Ask) -> Reply:
        if ask.method not in ("GET", "HEAD"):
            return text_reply("Method Not Allowed", 405)
        names = ask.path.removeprefix("/files/").split("/")
        path = self._inside(*names) if len(names) > 1 and all(names) else None
        if path is None:
            return text_reply("Not Found", 404)
        reply = file_reply(path, ask)
        if ask.headers.get("if-none-match") == reply.headers.get("ETag", ""):
            reply.body.close()
            return Reply(304, {"ETag": reply.headers["ETag"]}, Inline(b""))
        return reply


class _Refused(Exception):
    """An answer that is no success, raised from wherever it becomes clear."""

    def __init__(self, status: int, detail: object, headers: Mapping[str, str] | None = None) -> None:
        unsaid = text_reply("Internal Server Error", status)
        self.reply = unsaid if detail is None else json_reply({"detail": detail}, status)
        self.reply.headers.update(headers or {})


@dataclass(frozen=True, slots=True)
class _Call:
    """One API call: what came in the path after the endpoint's name, and the query."""

    ask: Ask
    arguments: list[str]
    base_url: str

    @property
    def tag(self) -> str | None:
        return self.ask.query.get("tag")

    def validated(self, *names: str, tagged: bool = True, remotes: tuple[str, ...] = ()) -> list[str]:
        """Return the arguments; refuse with 422 and FastAPI's words when one is malformed, as an alias is.

        tagged: the endpoint takes `?tag=`; remotes: what it takes as `?remoteClass=`. Others aren't looked at.
        """
        errors = [
            _genome_error(value) if name == "genome" else _name_error("path", name, value)
            for name, value in zip(names, self.arguments, strict=True)
        ]
        if tagged and self.tag is not None:
            errors.append(_name_error("query", "tag", self.tag))
        remote = self.ask.query.get("remoteClass")
        if remotes and remote is not None and remote not in remotes:
            expected = " or ".join(repr(name) for name in remotes)
            what = _invalid("enum", ["query", "remoteClass"], f"Input should be {expected}", remote)
            errors.append(what | {"ctx": {"expected": expected}})
        if any(errors):
            raise _Refused(422, [error for error in errors if error])
        return self.arguments

    def flag(self, name: str) -> bool:
        value = self.ask.query.get(name, "false").lower()
        if value not in _TRUE | _FALSE:
            message = "Input should be a valid boolean, unable to interpret input"
            raise _Refused(422, [_invalid("bool_parsing", ["query", name], message, self.ask.query[name])])
        return value in _TRUE


_ENDPOINTS: Final[dict[tuple[str, int], Callable[[Catalog, _Call], Reply]]] = {
    ("genomes/list", 0): Catalog._list_genomes,
    ("genomes/alias_dict", 0): Catalog._alias_dict,
    ("genomes/attrs", 1): Catalog._genome_attrs,
    ("assets/list", 0): Catalog._list_assets,
    ("assets/default_tag", 2): Catalog._default_tag,
    ("assets/attrs", 2): Catalog._asset_attrs,
    ("assets/archive", 2): Catalog._archive,
    ("assets/dir_contents", 2): Catalog._dir_contents,
    ("assets/file_path", 3): Catalog._file_path,
    ("remotes/dict", 0): Catalog._remotes_dict,
}


def _only_get(ask: Ask) -> None:
    if ask.method != "GET":  # HEAD too
        raise _Refused(405, "Method Not Allowed", {"Allow": "GET"})


def _seek_paths(assets: Mapping[str, Any]) -> list[str]:
    """Return every `asset[.seek_key]:tag`; the seek key that bears the asset's name is left unsaid."""
    return sorted(
        f"{name}:{tag}" if key == name else f"{name}.{key}:{tag}"
        for name, asset in assets.items()
        for tag, attrs in asset["tags"].items()
        for key in attrs["seek_keys"]
    )


def _genome_error(value: str) -> dict[str, object]:
    where = ["path", "genome"]
    if len(value) < DIGEST_LENGTH:
        message = f"String should have at least {DIGEST_LENGTH} characters"
        return _invalid("string_too_short", where, message, value) | {"ctx": {"min_length": DIGEST_LENGTH}}
    if len(value) > DIGEST_LENGTH:
        message = f"String should have at most {DIGEST_LENGTH} characters"
        return _invalid("string_too_long", where, message, value) | {"ctx": {"max_length": DIGEST_LENGTH}}
    return _pattern_error(r"\w+", where, value)


def _name_error(place: str, name: str, value: str) -> dict[str, object]:
    return _pattern_error(_NAME, [place, name], value)


def _pattern_error(pattern: str, where: list[str], value: str) -> dict[str, object]:
    """Return what is wrong with the value, or an empty dict when it matches."""
    if re.fullmatch(pattern, value):
        return {}
    anchored = f"^{pattern}$"
    message = f"String should match pattern '{anchored}'"
    return _invalid("string_pattern_mismatch", where, message, value) | {"ctx": {"pattern": anchored}}


def _invalid(kind: str, where: list[str], message: str, value: str) -> dict[str, object]:
    return {"type": kind, "loc": where, "msg": message, "input": value}
