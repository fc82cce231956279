"""The only training loop, and what it needs: inputs, optimizers, checkpoints."""
