"""The command for people: files and folders in, super-resolved ones out, resumable, with a record of what was done.

`command` reads the command line, `jobs` finds what there is to do, `run` does it one after the other; `process` is one
volume, `sidecar` its record. Several processes may do it together: `share` divides the work, `lock` keeps other runs
out. Nothing here evaluates expressions of a configuration.
"""
