"""htsget 1.3 (GA4GH): what a query asks for, which bytes of a file answer it, and the ticket that names them.

Terms are those of hts-specs' `htsget.md` and of noodles. Pure: bytes are asked for, never read here.
"""
