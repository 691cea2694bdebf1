"""Reproduce, check and extend the shared sequence-continuation circuits of arXiv 2311.04131.

The ground that all else stands on is ``errors``, ``store`` (files, whole or not at all),
``choices`` (what a run may choose among), ``statistics``, ``components`` (heads, MLPs and edges by
name), ``typography`` (signs in what is shown) and ``versions``. The rooms, each of which imports
only from those before it:

- ``models``: from a name to a loaded model
- ``prompts``: what a model is asked, and scores of its answers
- ``ablation``: the engine, which runs it again with parts replaced
- ``circuits``: what one is, searches, chance, quality
- ``methods``: scores of components and edges by many methods, and of the methods themselves
- ``planted``: models built by hand whose circuit is known
- ``analyses``: what parts do, and what circuits tell
- ``chapters``: what each chapter of the book measures, and the findings that it keeps
- ``paper``: what was published, and a verdict on each claim

Beside them stand ``figures`` (how findings look), ``answers`` (to what the chapters say to try),
``workflow`` (one notebook, or all stages) and ``publishing`` (the book); ``commands`` is the one
door to all of it.
"""

__version__ = "0.1.0"
