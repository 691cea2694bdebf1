"""Stages, their parameters and records; running one notebook, or all of them."""
