"""Files that no origin has, made of those that are there: indices, each by a process of its own."""
