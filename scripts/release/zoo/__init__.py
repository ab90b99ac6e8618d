"""The checks of the MONAI model zoo for a bundle folder: files, metadata, properties, exports, and every config run.

`scripts/zoo_check.py` runs them. Modules: `files`, `metadata`, `requirements` and `documents` only read; `built` builds
the networks with MONAI's own tools; `runs` starts each config in its own process; `gate` collects and reports.
"""
