"""The command line: super-resolve files and folders, resumable, with a record of every result.

`command` reads the options, `plan` finds the volumes to process, `run` processes them one by one; `one_volume` handles
one volume, `record` writes its sidecar. Several processes can share a run: `partition` divides the work, `lock` keeps
other runs out. Nothing here evaluates expressions in a configuration.
"""
