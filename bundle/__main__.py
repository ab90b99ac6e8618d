"""`python -m bundle INPUT OUTPUT`: super-resolve volumes (see `bundle.cli`)."""

from bundle.cli.command import main

if __name__ == "__main__":
    main(prog_name="python -m bundle")
