"""Answers against references: lexical scores, closed accuracy, clinical change F1, and their uncertainty.

`python -m lumen_hpc.metrics answers.jsonl references.jsonl` scores any model's answers without a cluster.
"""
