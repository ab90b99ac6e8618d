"""Baselines with the interface of ICONet, one file each; :mod:`bundle.networks.registry` builds them by name.

Written from their papers and from what their public code computes. Where a paper upsamples by bicubic interpolation,
here it is aligned with the grid of k-space truncation (centred bicubic costs almost 5 dB on the sample volume). None
subtracts the mean colour of natural images. Scales are 2, 4 and 8.

Multiply-adds in the docstrings: products and convolutions by PyTorch's FlopCounterMode / 2, one channel, 2x from
128x128 to 256x256.
"""
