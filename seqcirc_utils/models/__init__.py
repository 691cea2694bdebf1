"""From a name to a loaded model: the zoo, fetching, loading."""
