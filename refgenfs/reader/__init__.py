"""A read becomes blocks, blocks become flights, flights bring bytes."""
