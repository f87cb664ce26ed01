"""Metrics over routing: small pure functions, each with its definition and source.

They take arrays (:mod:`libmoe.analysis.counts` makes them from a trace) and know nothing of files or models.
"""
