"""refgenfs mounts refgenie genomes as a read-only file system whose files are fetched as they are read."""

__version__ = "0.1.0"
