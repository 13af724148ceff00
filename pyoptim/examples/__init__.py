"""Programs to read, run and change: ``python -m pyoptim.examples --list``."""
