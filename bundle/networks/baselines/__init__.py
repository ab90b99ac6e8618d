"""Baselines with the interface of ICONet, one file each; :mod:`bundle.networks.registry` builds them by name.

Written from the papers and checked against their public code. Where a paper upsamples by bicubic interpolation, it is
aligned here with the grid of k-space truncation (centred bicubic costs almost 5 dB on the sample volume). None
subtracts the mean colour of natural images. Scales are 2, 4 and 8.

Multiply-adds in the docstrings: matrix products and convolutions, PyTorch's FlopCounterMode / 2, one channel, 2x from
128x128 to 256x256.
"""
