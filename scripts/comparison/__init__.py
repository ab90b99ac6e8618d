"""Comparison of methods on volumes with known truth: protocol, costs, tables, figures, ablation experiments."""
