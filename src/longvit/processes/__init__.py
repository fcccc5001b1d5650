"""Cooperating processes: leases, child processes, interrupts, the number of CPUs."""
