"""DICOM series: find, read, and write as derived series."""
