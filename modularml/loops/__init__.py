"""Loops of one's own: `Stream`, streams of events, and `Runner`."""
