"""What pyproject.toml cannot say: models/ and configs/ are data of the package, from folders beside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bundle*"]), "bundle.models", "bundle.configs"],
    package_dir={"bundle.models": "models", "bundle.configs": "configs"},
)
