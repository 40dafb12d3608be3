"""The schedule library: one file per algorithm, each holding one value `ALGORITHM`."""
