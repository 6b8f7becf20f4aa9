"""Measuring: benchmarks → questions → answers → figures.

`benchmarks.py` measures a named model and writes files; `runner.py` asks a model that is at hand; `scores.py`,
`localisation.py`, `perplexity.py` and `parsing.py` are the rules, without a model.
"""
