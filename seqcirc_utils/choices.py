"""What a run may choose among, where the part that uses it is slow to import."""

KINDS = ("mean", "zero")
"""What ablated heads write beyond the tasks: their mean, or nothing."""

MEMBERS = ("attribution patching", "EAP-IG inputs", "EAP-IG activations", "clean-corrupted")
"""Methods that the ensemble averages."""
ALONE = (*MEMBERS, "RelP")
"""Gradient methods, which score each prompt by itself."""

LONGEST = 4
"""Members of the corrupted prompts behind the means; no prompt of a pool may show more."""
