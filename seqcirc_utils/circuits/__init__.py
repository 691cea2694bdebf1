"""Circuits: what one is, chance, searches, and how good one is."""
