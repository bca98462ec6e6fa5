"""Scripts that race another library against the hand-written loop, each in its environment."""
