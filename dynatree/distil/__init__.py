"""Make a drafter for a target from the target's own layers. `make` in make.py is the whole of it."""
