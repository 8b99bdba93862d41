"""Scripts behind recorded figures, and the figures."""
