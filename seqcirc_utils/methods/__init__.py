"""Scores of components and edges by many methods, through one door, and how good each is."""
