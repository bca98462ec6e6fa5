"""Variants of an experiment, and running them here, in processes or on clusters."""
