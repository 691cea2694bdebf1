"""Reproduce, check and extend the shared sequence-continuation circuits of arXiv 2311.04131.

Modules, by what they are for:

- files and models: ``store``, ``models``, ``errors``
- what a model is asked, and scores of its answers: ``tasks``, ``controls`` (unrelated tasks),
  ``generalisation`` (probes beyond the tasks), ``metrics``
- what its parts do to the answer: ``attribution``, ``ablation`` (the evaluator)
- circuits: ``circuits``, ``discovery`` (of nodes), ``edges``, ``evaluation``, ``planted`` (models
  with a known circuit)
- what circuits tell: ``roles``, ``comparison`` (across tasks), ``prediction``, ``editing``
- the paper: ``evidence``, ``claims``, ``faults``
- figures: ``plots``, ``interactive``
- a stage: ``stages``, ``parameters``, ``fingerprint``, ``runs`` (notebooks call it), ``execution``
- all stages: ``plan``, ``workflow`` (the command line), ``progress``, ``summary``
  (of sweeps), ``pages`` (the book), ``pdf``
"""

__version__ = "0.1.0"
