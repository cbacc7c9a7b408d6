"""What a run has to survive, made by scripts: see the modules."""
