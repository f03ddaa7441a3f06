"""Build hook: compiles the native operator library into the ``ops`` package. Everything else is in pyproject.toml.

    pip install --no-build-isolation .      # builds against the torch that is installed

Without a C++ compiler the package installs all the same and runs on its plain PyTorch operators.
"""

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution


class BuildWithLibrary(build_py):
    def run(self):
        path = Path(__file__).parent / "ops" / "build.py"
        spec = importlib.util.spec_from_file_location("ops_build", path)
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        try:
            builder.build()
        except builder.BuildError as error:
            self.warn(f"the native operators were not built ({error}); the plain PyTorch ones will be used")
        super().run()


class BinaryDistribution(Distribution):
    """The wheel holds a shared library, so it is tied to a platform."""

    def has_ext_modules(self):
        return True


class WheelForEveryPython(bdist_wheel):
    """The library has no Python in it."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelForEveryPython}, distclass=BinaryDistribution)
