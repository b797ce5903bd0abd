"""Benchmarks: refgenfs beside plain files, curl and its peers, in one run. `make bench`; see docs/performance.md."""
