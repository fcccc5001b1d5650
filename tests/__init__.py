"""Tests and their helpers; a folder per package of `longvit`."""
