"""The artifact: packaging, loading, and the C that runs a plan."""
