"""Experiments and pictures: what ``pyoptim compare`` and ``pyoptim study`` run."""
