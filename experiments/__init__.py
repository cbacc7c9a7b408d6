"""What is run beside training: benchmarks, and the tables that came of runs."""
