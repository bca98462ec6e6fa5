"""Custom loops: `Stream`, streams of events, and `Runner`."""
