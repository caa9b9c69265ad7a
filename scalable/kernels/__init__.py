"""Pure kernels: sorted flat arrays in, arrays out. No Dask, files, clocks or data frames."""
