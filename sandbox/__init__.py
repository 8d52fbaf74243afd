"""What tests and benchmarks share: a real Slurm on one machine, a copy of the project, small language models."""
