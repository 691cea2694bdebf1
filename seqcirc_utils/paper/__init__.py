"""The paper: what it published, and what is made of it here."""
