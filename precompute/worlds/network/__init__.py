"""Running a network: precision, compiling, slices, offloading, and the memory of its forward. Knows no family."""
