// Reads aligned against an index on the mount.
//
//   nextflow run main.nf -profile podman,slurm --genome hg38 --reads 'reads/*.fq'
nextflow.enable.dsl = 2

process ALIGN {
    tag "${sample}"
    cpus 4
    memory '8 GB'
    container 'example.org/bwa-samtools:1'

    input:
    tuple val(sample), path(reads)
    // A val, not a path: a path is staged, which means that each file is linked into the work folder and its folder is
    // bound by itself, and with stageInMode 'copy' or a remote work folder that the whole index is read before bwa
    // reads what it needs of it. The folder of all genomes is bound once, by nextflow.config.
    val index
    // With a val, -resume does not see that an index was rebuilt. This does: it is another text then.
    val version

    output:
    tuple val(sample), path("${sample}.bam")

    script:
    """
    bwa mem -v 1 -t ${task.cpus} ${index} ${reads} | samtools sort -o ${sample}.bam -
    """
}

workflow {
    reads = Channel.fromPath(params.reads).map { file -> tuple(file.baseName, file) }
    index = "${params.genomes}/${params.genome}/bwa_index/${params.genome}.fa"
    ALIGN(reads, index, params.version)
}
