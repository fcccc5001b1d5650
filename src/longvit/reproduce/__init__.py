"""Reproduction of the paper's tables: from the name of a cell to its row beside the published one."""
