"""Error bounds and exact arithmetic."""
