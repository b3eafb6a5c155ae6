"""What is to be run: params.yaml checked, scales, the grid of runs, and how long it would take."""
