"""The gate of the MONAI model zoo for a bundle folder: files, metadata, properties, exports, and every config run.

`scripts/zoo_check.py` runs it. Modules: `files`, `metadata`, `requirements` and `documents` read, `built` builds the
networks through MONAI's own tools, `runs` starts each config in a process of its own, `gate` gathers and reports.
"""
