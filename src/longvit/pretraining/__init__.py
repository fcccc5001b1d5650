"""DINO pretraining from slides: the run from settings to files, probes and collapse alarms."""
