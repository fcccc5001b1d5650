"""Heat maps of slides as files for other programs, one file per format, and a test of how faithful a map is."""
