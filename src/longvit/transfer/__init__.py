"""Transfer of public files: listing of an archive's objects, resumed and checked downloads, a bound of their disk."""
