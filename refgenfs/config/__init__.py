"""The configuration: one TOML file and the command line, validated into one frozen `Config`."""

from refgenfs.config.loading import LoadedConfig, find_config, load_config, override_keys
from refgenfs.config.model import (
    LOG_LEVELS,
    PUBLIC_SERVER,
    CacheConfig,
    CatalogConfig,
    Config,
    LimitsConfig,
    LogConfig,
    MinFree,
    MountConfig,
    RefgenieSource,
    Source,
)

__all__ = [
    "LOG_LEVELS",
    "PUBLIC_SERVER",
    "CacheConfig",
    "CatalogConfig",
    "Config",
    "LimitsConfig",
    "LoadedConfig",
    "LogConfig",
    "MinFree",
    "MountConfig",
    "RefgenieSource",
    "Source",
    "find_config",
    "load_config",
    "override_keys",
]
