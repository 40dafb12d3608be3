"""Search over spaces, and records."""
