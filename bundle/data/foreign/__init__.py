"""Volumes of other formats, given to the reader of NIfTI as what it reads: a NIfTI header and voxels in file order.

There is one path from a file to its voxels. A format adds what its header says (:class:`bundle.data.foreign.head.Head`)
and where its voxels come from; every check of NIfTI then holds for it too.
"""
