"""What parts do, and what circuits tell."""
