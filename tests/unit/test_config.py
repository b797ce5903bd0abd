"""The configuration: what is read, what is refused, and what is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refgenfs.config import SOURCE_MODELS, Config, HtsgetSource, LoadedConfig, MinFree, load_config, override_keys
from refgenfs.config.model import PrefetchRule
from refgenfs.config.sources import HtsgetAsset, HttpAsset, Source, WebSource
from refgenfs.core.errors import ConfigError
from refgenfs.core.siblings import BUILT_IN

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
SOURCE = '[[source]]\nname = "lab"\ntype = "refgenie"\nurl = "http://h"\n'

WEB = """[[source]]
name = "web"
type = "http"
url = "http://h"
"""
ONE_WAY = 'write one of files = ["hg38.fa.gz"], folder = "hg38" and manifest = "hg38/MD5SUMS"'
S3 = "[[source]]\nname = 'b'\ntype = 's3'\nbucket = 'genomes'\n"
RULE = "[[prefetch.rule]]\nname = 'blast'\nopens = ['.nin']\nbrings = ['.nhr', '.nsq']\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration file."""

    def to_file(text: str) -> Path:
        path = tmp_path / "refgenfs.toml"
        path.write_text(text)
        return path

    return to_file


def load(
    path: Path | None, overrides: dict[str, Any] | None = None, *, uid: int = 1000, **environ: str
) -> LoadedConfig:
    """Load for a user with a home of their own."""
    return load_config(path, overrides or {}, {"HOME": "/home/eve", **environ}, uid=uid)


def complaint(path: Path | None, overrides: dict[str, Any] | None = None) -> list[str]:
    """Return the lines of what is wrong, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def web(source: Source) -> WebSource:
    assert isinstance(source, WebSource)
    return source


# -- defaults and origins -------------------------------------------------------------------------------------


def test_with_no_file_the_public_server_is_the_source() -> None:
    loaded = load(None)
    assert loaded.path is None
    assert [web(source).url for source in loaded.config.source] == ["http://refgenomes.databio.org"]
    assert loaded.config.mount.point == Path("/genomes")
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.origins["source.refgenomes.url"] == "default"


def test_the_cache_is_where_the_user_keeps_such() -> None:
    assert load(None, uid=0).config.cache.dir == Path("/var/cache/refgenfs")
    assert load(None).config.cache.dir == Path("/home/eve/.cache/refgenfs")
    loaded = load(None, XDG_CACHE_HOME="/scratch")
    assert loaded.config.cache.dir == Path("/scratch/refgenfs")
    assert loaded.origins["cache.dir"] == "environment XDG_CACHE_HOME"
    loaded = load(None, XDG_CACHE_HOME="/scratch", CACHE_DIRECTORY="/var/cache/refgenfs-lab:/other")
    assert loaded.config.cache.dir == Path("/var/cache/refgenfs-lab")
    assert loaded.origins["cache.dir"] == "environment CACHE_DIRECTORY"


def test_the_command_line_wins_over_the_file(write: Write) -> None:
    path = write('[cache]\nsize = "20GB"\nmin_free = "10GB"\n' + SOURCE)
    loaded = load(path, {"cache.size": "30GiB", "mount.allow_other": True, "limits.connections": "3"})
    assert loaded.config.cache.size == 30 * 2**30
    assert loaded.config.limits.connections == 3
    assert loaded.origins["cache.size"] == "command line"
    assert loaded.origins["cache.min_free"] == f"file {path}"
    assert loaded.origins["source.lab.url"] == f"file {path}"
    assert loaded.origins["source.lab.timeout"] == "default"


def test_a_loaded_configuration_loads_again_the_same(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write('[mount]\npoint = "g"\n' + SOURCE)
    monkeypatch.chdir(path.parent)
    once = load(path, {"cache.dir": "c", "cache.size": "1GB"})
    monkeypatch.chdir("/")
    again = load(once.path, {key: str(value) for key, value in once.overrides.items()})
    assert again.config == once.config


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(None).config.cache.size = 1


# -- which file -----------------------------------------------------------------------------------------------


def test_files_are_looked_for_in_order(tmp_path: Path) -> None:
    def place(name: str, size: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'[cache]\nsize = "{size}"\n')
        return path

    environ = {"HOME": str(tmp_path)}
    home = place(".config/refgenfs/config.toml", "1GB")
    assert load_config(None, {}, environ).path == home
    xdg = place("xdg/refgenfs/config.toml", "2GB")
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert load_config(None, {}, environ).path == xdg
    named = place("named.toml", "3GB")
    environ["REFGENFS_CONFIG"] = str(named)
    assert load_config(None, {}, environ).path == named
    given = place("given.toml", "4GB")
    loaded = load_config(given, {}, environ)
    assert (loaded.path, loaded.config.cache.size) == (given, 4 * 10**9)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^/nowhere/x\.toml: no such file; write it, or name another$"):
        load(Path("/nowhere/x.toml"))
    with pytest.raises(ConfigError, match=r"no such file \(named by REFGENFS_CONFIG\); write it, or name another$"):
        load(None, REFGENFS_CONFIG="/nowhere/x.toml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)


def test_what_is_no_toml_is_told_with_its_line(write: Write) -> None:
    path = write("[cache]\nsize = \n")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}:2: is no TOML: invalid value$"):
        load(path)
    with pytest.raises(ConfigError, match=r"is no TOML: .* at its end$"):
        load(write('a = "b'))
    path.write_bytes(b"a = '\xff'\n")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        load(path)


# -- paths ----------------------------------------------------------------------------------------------------


def test_paths_are_from_the_file_and_the_home(write: Write, tmp_path: Path) -> None:
    path = write('[mount]\npoint = "~/g"\n[cache]\ndir = "../c"\n' + SOURCE + 'token_file = "t"\n')
    config = load(path).config
    assert config.mount.point == Path("/home/eve/g")
    assert config.cache.dir == tmp_path.parent / "c"
    assert web(config.source[0]).token_file == tmp_path / "t"


def test_paths_of_the_command_line_are_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(None, {"mount.point": "g", "cache.dir": "~/c"})
    assert loaded.config.mount.point == tmp_path / "g"
    assert loaded.overrides == {"mount.point": tmp_path / "g", "cache.dir": Path("/home/eve/c")}


# -- what is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[cache]\nsise = 1", "cache.sise: unknown key; did you mean 'size'?"),
        ("[cach]\nsize = 1", "cach: unknown key; did you mean 'cache'?"),
        ("[cache]\nread_deadline = 1", "cache.read_deadline: unknown key; it belongs to [limits]"),
        ("size = 1", "size: unknown key; it belongs to [cache]"),
        ("[log]\nxyz = 1", "log.xyz: unknown key; known are: level"),
        ('[cache]\nsize = "1MB"', "cache.size: must be at least 4MiB"),
        ("[mount]\nallow_other = 'maybe'", "mount.allow_other: must be true or false"),
        ("[mount]\npoint = 7", "mount.point: must be a path in quotes"),
        ("[limits]\nconnections = 'x'", "limits.connections: must be a whole number"),
        ("[limits]\nconnections = 0", "limits.connections: must be at least 1"),
        ("[mount]\nreadahead = '1GB'", "mount.readahead: must be at most 16MiB"),
        ("[log]\nlevel = 'loud'", "log.level: must be one of: debug, info, warning, error"),
        ("cache = 3", "cache: must be a table; write [cache]"),
        ("[source]\nname = 'x'", "source: must be a list of tables; write [[source]]"),
        ("source = [1]", "source[1]: must be a table; write [[source]]"),
        ("[[source]]\nname = 'x'\ntype = 'refgenie'",
         'source.x.url: missing; write url = "http://refgenomes.databio.org"'),
        ("[[source]]\nname = 'x'\ntype = 'http'",
         'source.x.url: missing; write url = "https://www.example.org/genomes/"'),
        ("[[source]]\nname = 'x'\nurl = 'http://h'",
         'source.x.type: missing; write type = "refgenie"; this version has: refgenie, http, s3, local, htsget'),
        ("[[source]]\nname = 'x'\ntype = 'ftp'\nurl = 'ftp://b'",
         "source.x.type: no such type of source; this version has: refgenie, http, s3, local, htsget"),
        (S3, ('source.b: has no files; write layout = "igenomes" or layout = "ncbi" or layout = "plain", '
             "a pattern, or a [[source.asset]]")),
        (S3 + "layout = 'igenome'", ('source.b.layout: \'igenome\' is no layout; write "igenomes", "ncbi", "plain", '
                                    'or a pattern like "{genome}/{asset}/{file}"')),
        (S3 + "layout = ['{genome}/{file} -> {genome}']",
         ("source.b.layout: '{genome}/{file} -> {genome}': '{genome}' is no key; "
         "write genome/asset or genome/asset:tag after '->'")),
        (S3 + "layout = 3", "source.b.layout: must be text in quotes, or a list of rules, each in quotes"),
        (S3 + "layout = 'plain'\nurl = 'http://h'",
         ("source.b.url: unknown key; known are: name, type, allow_users, allow_groups, layout, revalidate, asset, "
          "bucket, prefix, region, "
         "endpoint, path_style, anonymous, profile, request_payer, timeout, proxy")),
        (S3 + "layout = 'plain'\nregion = 'Frankfurt'",
         "source.b.region: 'Frankfurt' is no region; write one like \"eu-west-1\""),
        (S3 + "layout = 'plain'\nanonymous = true\nprofile = 'lab'",
         "source.b: anonymous requests have no profile and no request_payer; leave anonymous out, or these"),
        (S3 + "[[source.asset]]\nkey = 'hg38/fasta'\nfiles = ['../x']",
         ("source.b.asset[1].files[1]: '../x' names no file: write its path below the source's own, "
         "without '..' or '//'")),
        (S3.replace("'genomes'", "'s3://genomes'") + "layout = 'plain'",
         "source.b.bucket: 's3://genomes' is no name of a bucket; write it without s3:// and without a prefix"),
        ("[[source]]\nname = 'l'\ntype = 'local'\nlayout = 'plain'",
         'source.l.path: missing; write path = "/data/genomes"'),
        ("[[source]]\ntype = 'refgenie'\nurl = 'http://h'", 'source[1].name: missing; write name = "lab"'),
        (SOURCE + "mirors = []", "source.lab.mirors: unknown key; did you mean 'mirrors'?"),
        (SOURCE + "mirrors = ['http://h', 'ftp://x']",
         "source.lab.mirrors[2]: 'ftp://x' is no http:// or https:// URL; write one like 'https://www.example.org'"),
        (SOURCE.replace("lab", "refget"), "source.refget: the refget servers have this name; give it another one"),
        (SOURCE + SOURCE, "source.lab: two sources have this name; give each its own"),
        ("[mount]\npoint = '/data/genomes'\n[[source]]\nname = 'l'\ntype = 'local'\npath = '/data'\nlayout = 'plain'",
         "source.l.path '/data' and mount.point can't be in each other"),
        ("[mount]\npoint = '/'", "mount.point can't be '/'; name a directory of its own, for example /genomes"),
        ("[prefetch]\nsibling = 3", "prefetch.sibling: unknown key; did you mean 'siblings'?"),
        ("[prefetch]\nrule = [3]", "prefetch.rule[1]: must be a table; write [[prefetch.rule]]"),
        ("[prefetch.rule]\nname = 'x'", "prefetch.rule: must be a table; write [[prefetch.rule]]"),
        (WEB + "asset = [3]", "source.web.asset[1]: must be a table; write [[source.asset]]"),
        (WEB + "[[source.asset]]\nkey = 'hg38'\nfiles = ['a']",
         "source.web.asset[1].key: hg38 names a genome: write hg38/ASSET; `refgenfs list hg38` shows them"),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta.fai'\nfiles = ['a']",
         'source.web.asset[1].key: \'hg38/fasta.fai\' has a seek key; write "genome/asset" or "genome/asset:tag"'),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'\nfile = ['a']\nfiles = []",
         "source.web.asset[1].file: unknown key; did you mean 'files'?"),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'", f"source.web.asset[1]: {ONE_WAY}"),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'\nfiles = ['a']\nfolder = 'x'",
         f"source.web.asset[1]: {ONE_WAY}"),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'\nfolder = '../x'",
         "source.web.asset[1].folder: '../x' is no path below url"),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'\nfiles = ['a']\nonly = ['*.fa']",
         "source.web.asset[1]: only is for what is found in a folder or a manifest, not for files"),
        (WEB, 'source.web: it has nothing; write [[source.asset]] tables, or layout = "{genome}/{asset}/{file}"'),
        (WEB + "manifest = 'MD5SUMS'\n[[source.asset]]\nkey = 'hg38/fasta'\nfiles = ['a']",
         'source.web: manifest needs a layout, which says what its files are: layout = "{genome}/{asset}/{file}"'),
        (WEB + "layout = '{genome'",
         "source.web.layout: '{genome': a '{' or '}' too many; a field is written {name}"),
        (SOURCE + "user = 'eve'", "source.lab: user and password_file belong together; write both, or neither"),
        (SOURCE + "user = 'eve'\npassword_file = 'p'\ntoken_file = 't'",
         "source.lab: token_file and user are two ways to say who asks; write one of them"),
        (SOURCE + "proxy = 'nonne'",
         "source.lab.proxy: 'nonne' is no http:// or https:// URL; write one like 'https://www.example.org'"),
        (SOURCE + "proxy = ['http://p', 'dirct']",
         "source.lab.proxy: 'dirct' is no http:// or https:// URL; write one like 'https://www.example.org'"),
        (SOURCE + "proxy = []",
         'source.lab.proxy: must be a URL in quotes, or a list such as ["http://proxy.example.org:3128", "direct"]'),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'\nfiles = ['x/']",
         "source.web.asset[1].files[1]: 'x/' names no file"),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'\nfiles = ['ftp://x/y']",
         "source.web.asset[1].files[1]: 'ftp://x/y' is no path below url, and no http:// or https:// URL"),
        (WEB + "[[source.asset]]\nkey = 'hg38/fasta'\nfiles = ['x/a', 'y/a']",
         "source.web.asset[1]: two files have the name 'a'"),
        (RULE + "open = ['.x']", "prefetch.rule[1].open: unknown key; did you mean 'opens'?"),
        (RULE.replace(".nin", "a/b"),
         "prefetch.rule[1].opens[1]: 'a/b' is no ending of a file's name; write one like \".bwt\", or a whole name"),
        (RULE.replace("['.nin']", "[]"), "prefetch.rule[1].opens: must not be empty"),
        ("[[prefetch.rule]]\nname = 'x'\nopens = ['.x']",
         'prefetch.rule[1].brings: missing; write brings = [".sa", ".pac"]'),
        (RULE + RULE, "prefetch: two rules have the name 'blast'; give each its own"),
        ("[cache]\ndir = '/genomes/c'", "cache.dir '/genomes/c' can't be inside of mount.point '/genomes'"),
    ],
)  # fmt: skip
def test_errors_say_what_would_be_right(write: Write, text: str, wanted: str) -> None:
    assert complaint(write(text)) == [wanted]


def test_every_error_has_its_line(write: Write) -> None:
    lines = complaint(write('[cache]\nsize = "1G"\nmin_free = "100%"\n[limits]\nretry_for = "-1s"\n'))
    assert [line.partition(":")[0] for line in lines] == ["cache.size", "cache.min_free", "limits.retry_for"]


def test_errors_of_the_command_line_say_so(write: Write) -> None:
    path = write("[cache]\nsize = 1\n")
    assert complaint(path, {"cache.min_free": "x"})[1].startswith("command line: cache.min_free: ")
    assert complaint(path, {"cache.sise": "1GB"}) == [
        "command line: cache.sise: unknown key; did you mean 'cache.size'?"
    ]


@pytest.mark.parametrize(
    "url",
    ["", "h", "ftp://h", "http://", "http:///x", "http://h:port", "http://h/a b", "http://h/?q=hunter2", "http://h#f",
     "http://[::1", "eve:hunter2@h/x", "eve:hunter2@h", "http://eve:hunter2@h?x=1", "ftp://eve:hunter2@h",
     "http://eve:hunter2@/x", "http://eve:hunter2@h:port"],
)  # fmt: skip
def test_wrong_urls_are_refused_without_their_secrets(write: Write, url: str) -> None:
    for key in ("url", "mirrors", "proxy"):
        text = SOURCE.replace('url = "http://h"\n', "") if key == "url" else SOURCE
        value = f'["{url}"]' if key == "mirrors" else f'"{url}"'
        (line,) = complaint(write(f"{text}{key} = {value}\n"))
        assert line.startswith(f"source.lab.{key}")
        assert "hunter2" not in line


@pytest.mark.parametrize(
    ("text", "proxies", "shown"),
    [
        ('"http://p:3128"', ("http://p:3128",), '"http://p:3128"'),
        ('"none"', ("direct",), '"direct"'),
        ('["direct"]', ("direct",), '"direct"'),
        (
            '["http://eve:hunter2@p:3128", "http://q:3128", "direct", "none", "http://q:3128"]',
            ("http://eve:hunter2@p:3128", "http://q:3128", "direct"),
            '["http://p:3128", "http://q:3128", "direct"]',
        ),
    ],
)
def test_proxies_are_one_or_several_in_order(write: Write, text: str, proxies: tuple[str, ...], shown: str) -> None:
    loaded = load(write(f"{SOURCE}proxy = {text}\n"))
    assert web(loaded.config.source[0]).proxy == proxies
    assert {key: value for key, value, _ in loaded.settings()}["source.lab.proxy"] == shown
    assert "hunter2" not in repr(loaded)


def test_secrets_are_never_shown(write: Write) -> None:
    loaded = load(
        write(SOURCE.replace("http://h", "https://eve:hunter2@h:8443/x") + 'proxy = "http://p:hunter2@q:1"\n')
    )
    assert web(loaded.config.source[0]).url == "https://eve:hunter2@h:8443/x"
    shown = {key: value for key, value, _ in loaded.settings()}
    assert shown["source.lab.url"] == '"https://h:8443/x"'
    assert "hunter2" not in str(shown) + repr(loaded) + str(loaded.config)


@pytest.mark.parametrize("text", ["\0", "~\0", "~/\0x", "/cache\0"])
@pytest.mark.parametrize("key", ["mount.point", "cache.dir"])
def test_no_path_has_a_nul_in_it(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^command line: {key}: .*NUL"):
        load(None, {key: text})


@example("~\0")
@given(st.text(max_size=40))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    for key in override_keys():
        refused = ""
        try:
            load(None, {key: text})
        except ConfigError as exc:
            refused = str(exc)
        assert not refused or refused.startswith("command line: ")


# -- values ---------------------------------------------------------------------------------------------------


def test_min_free_is_a_share_or_a_size() -> None:
    assert MinFree.parse("5%").bytes_of(1000) == 50
    assert MinFree.parse("0.5 %").bytes_of(1001) == 6
    assert MinFree.parse("10GB").bytes_of(1000) == 10**10
    assert MinFree.parse(0).bytes_of(1000) == 0
    assert [str(MinFree.parse(text)) for text in ("5%", "0.5%", "10GB", 0)] == ["5%", "0.5%", "10GB", "0B"]
    for wrong in ("100%", "-1%", "%", "nan%", "5%%", "x", True, 0.5):
        with pytest.raises(ValueError, match="write"):
            MinFree.parse(wrong)


def test_rules_are_shown_by_name_and_come_before_the_built_in_ones(write: Write) -> None:
    loaded = load(write(RULE + "largest = '1MiB'"))
    shown = {key: (value, origin) for key, value, origin in loaded.settings() if key.startswith("prefetch.rule")}
    assert shown["prefetch.rule.blast.brings"] == ('[".nhr", ".nsq"]', f"file {loaded.path}")
    assert shown["prefetch.rule.blast.assets"] == ('"*"', "default")
    assert shown["prefetch.rule.blast.largest"][0] == '"1MiB"'
    first, *others = loaded.config.prefetch.rules()
    assert (first.name, first.opens, first.largest) == ("blast", (".nin",), 2**20)
    assert tuple(others) == BUILT_IN


def test_values_are_shown_as_they_are_written(write: Write) -> None:
    text = """
[mount]
point = "/g"
allow_other = true
[cache]
size = "64MiB"
min_free = "1GB"
[catalog]
refresh = 90
[log]
level = "DEBUG"
"""
    shown = {key: value for key, value, _ in load(write(text)).settings()}
    assert (
        shown
        | {
            "mount.point": '"/g"',
            "mount.allow_other": "true",
            "cache.size": '"64MiB"',
            "cache.min_free": '"1GB"',
            "catalog.refresh": '"90s"',
            "log.level": '"debug"',
            "source.refgenomes.mirrors": "[]",
            "source.refgenomes.proxy": "none",
        }
        == shown
    )


# -- where metrics are served ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", None),
        ("127.0.0.1:9417", ("127.0.0.1", 9417)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:9417", ("::1", 9417)),
        ("/run/refgenfs/m.sock", Path("/run/refgenfs/m.sock")),
    ],
)
def test_a_place_to_listen(write: Write, text: str, place: object) -> None:
    assert load(write(f'[web]\nlisten = "{text}"\n')).config.web.place == place


@pytest.mark.parametrize(
    "text", ["9417", "host.example.org:9417", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:", "m"]
)
def test_what_is_no_place_to_listen(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match=r"web\.listen: .* is no place to listen"):
        load(write(f'[web]\nlisten = "{text}"\n'))


def test_a_place_that_others_reach_needs_a_token(write: Write, tmp_path: Path) -> None:
    for listen in ("0.0.0.0:9417", "[::]:9417", "192.0.2.1:80"):
        with pytest.raises(ConfigError, match=r"web: .*set token_file"):
            load(write(f'[web]\nlisten = "{listen}"\n'))
        config = load(write(f'[web]\nlisten = "{listen}"\ntoken_file = "t"\n')).config
        assert config.web.token_file == tmp_path / "t"


# -- htsget ---------------------------------------------------------------------------------------------------

LAB = "[[source]]\nname = 'lab'\ntype = 'htsget'\nurl = 'http://h'\n[[source.asset]]\nkey = 'hg38/a'\n"


def test_ids_are_files_by_their_last_component(write: Write) -> None:
    source = load(write(LAB + "reads = ['1000g/NA12878', 'x.bam']")).config.source[0]
    assert isinstance(source, HtsgetSource)
    assert [name for name, _, _ in source.asset[0].files()] == ["NA12878.bam", "x.bam"]
    assert source.revalidate == 600
    source = load(write(LAB + "variants = ['a/b', 'c.vcf']\nformat = 'VCF'")).config.source[0]
    assert isinstance(source, HtsgetSource)
    assert [name for name, _, _ in source.asset[0].files()] == ["b.vcf.gz", "c.vcf.gz"]


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("", "write reads = [...] or variants = [...]"),
        ("reads = ['a']\nvariants = ['b']", "one of them"),
        ("reads = ['a']\nformat = 'VCF'", "VCF is no format of reads"),
        ("reads = ['a']\nformat = 'SAM'", "must be one of: BAM, CRAM, VCF, BCF"),
        ("reads = ['a/x', 'b/x']", "'a/x' and 'b/x' of hg38/a would both be 'x.bam'"),
        ("reads = ['x']\n[[source.asset]]\nkey = 'hg38/a'\nreads = ['b/x']", "would both be 'x.bam'"),
        ("reads = ['service-info']", "servers answer it with what they are"),
        ("reads = ['']", "is no id"),
        ("reads = ['a/../b']", "is no id"),
        ("reads = ['a/']", "is no id"),
        ("read = ['a']", "did you mean 'reads'?"),
    ],
)
def test_what_is_wrong_with_an_asset_of_htsget(write: Write, rest: str, said: str) -> None:
    assert any(said in line for line in complaint(write(LAB + rest)))


# -- the reference --------------------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Return the keys of the reference with their defaults."""
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]+ \| ([^|]+) \|", DOCS.read_text(), re.MULTILINE)
    return dict(rows)


def test_every_key_is_documented_with_its_default() -> None:
    defaults = {key: value for key, value, _ in load(None, uid=0).settings() if not key.startswith("source.")}
    source = {f"source.{name}" for model in SOURCE_MODELS.values() for name in model.model_fields} - {"source.asset"}
    source |= {f"source.asset.{name}" for model in (HttpAsset, HtsgetAsset) for name in model.model_fields}
    source |= {f"prefetch.rule.{name}" for name in PrefetchRule.model_fields}
    found = documented()
    assert set(found) == set(defaults) | source
    for key, value in defaults.items():
        assert value.strip('"') in found[key], f"{key}: the reference has another default than {value}"


def test_the_examples_of_the_reference_are_right(write: Write) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert isinstance(load(write(block)).config, Config)


def test_mount_words_of_the_reference_are_known() -> None:
    from refgenfs.cli.mount_options import parse_mount_options

    words = re.findall(r"^\| `-o ([a-z_]+)(?:=[^`]*)?` \| `([a-z_.]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert {key for _, key in words} == set(override_keys()) - {"mount.point"}
    for word, key in words:
        assert list(parse_mount_options(f"{word}=1")) == [key]
