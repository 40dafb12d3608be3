"""From kernels to object code, through TVM. With the schedule library the only place that imports it."""
