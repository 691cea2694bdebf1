"""What a model is asked: tasks, controls, probes, plain text; and scores of its answers."""
