"""What runs a phase: the loop, its state, its batches, callbacks and checkpoints."""
