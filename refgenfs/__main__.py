"""`python -m refgenfs` is the `refgenfs` command."""

from refgenfs.cli import main

if __name__ == "__main__":
    main()
