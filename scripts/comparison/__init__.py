"""The comparison of methods on volumes of known truth: protocol, costs, tables, figures, ablation experiments."""
