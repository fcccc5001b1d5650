"""Published tile encoders by name: their table, their networks, their weights."""
