"""The configuration: one TOML file and the command line, validated into one frozen `Config`."""

from refgenfs.config.files import file_problems, secret_files, token_problem
from refgenfs.config.loading import LoadedConfig, find_config, load_config, override_keys
from refgenfs.config.model import (
    LOG_LEVELS,
    CacheConfig,
    CatalogConfig,
    Config,
    LimitsConfig,
    LogConfig,
    MountConfig,
)
from refgenfs.config.sources import (
    SOURCE_MODELS,
    HtsgetSource,
    HttpSource,
    LocalSource,
    RefgenieSource,
    S3Source,
    Source,
    SourceTable,
    WebSource,
)
from refgenfs.config.values import PUBLIC_SERVER, MinFree

__all__ = [
    "LOG_LEVELS",
    "PUBLIC_SERVER",
    "SOURCE_MODELS",
    "CacheConfig",
    "CatalogConfig",
    "Config",
    "HtsgetSource",
    "HttpSource",
    "LimitsConfig",
    "LoadedConfig",
    "LocalSource",
    "LogConfig",
    "MinFree",
    "MountConfig",
    "RefgenieSource",
    "S3Source",
    "Source",
    "SourceTable",
    "WebSource",
    "file_problems",
    "find_config",
    "load_config",
    "override_keys",
    "secret_files",
    "token_problem",
]
