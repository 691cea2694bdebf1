"""Reproduce, check and extend the shared sequence-continuation circuits of arXiv 2311.04131.

Modules, from the ground up: ``store`` (where results live), ``models`` (name to bridge), ``tasks``
(prompts), ``metrics`` (scores and intervals), ``ablation`` (the evaluator), ``attribution``,
``circuits``, ``comparison``, ``plots``, ``stages`` (notebooks with strict parameters),
``workflow`` (the command line behind ``make``).
"""

__version__ = "0.1.0"
