"""The training loop: its state, batches, callbacks and checkpoints."""
