"""Slices of BAM, CRAM, VCF and BCF files, as folders that resolve without being listed: `regions/11:1-2000/x.bam`."""
