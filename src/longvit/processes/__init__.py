"""Processes that work together: leases, child processes, interrupts."""
