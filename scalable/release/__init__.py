"""The release: what leaves the house, an HDF5 data set that can prove where every row came from."""
