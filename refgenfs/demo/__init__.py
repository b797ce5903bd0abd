"""A whole run of refgenfs on one machine: a simulated genome, an origin that serves it, reads to align.

`genome` simulates the sequences and the reads, and checks alignments against where the reads came from; `build`
lays out the folder an origin serves, with the index that `bwa` makes; `answers` says what a refgenieserver would
answer from that folder; `origin` serves it over HTTP and counts every byte. These import no part of the daemon;
`run`, which mounts the origin and shows what was fetched, does.
"""
