"""One file per system. Each runs in that system's own environment, so nothing here imports the harness."""
