"""Training: `Trainer`, the compiled engines that it runs epochs in, checkpoints that resume."""
