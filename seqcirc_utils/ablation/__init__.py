"""The engine: what the model answers with parts of it replaced, exactly and fast."""
