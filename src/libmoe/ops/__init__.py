"""Tensor operations: plain references and faster forms with the same meaning."""
