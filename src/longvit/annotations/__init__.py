"""Annotations: areas of a slide with a class, drawn in QuPath or stored as a mask image; read, rasterised, written."""
