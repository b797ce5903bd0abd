"""The content store: sparse files of blocks, the ledger of what they hold, quota, eviction and checks."""
