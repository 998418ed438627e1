"""Export of networks to files of other runtimes. Each file is run and compared before it gets its name."""
