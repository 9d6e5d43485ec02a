"""Tags a wheel by what is in it: one architecture and any Python with compiled CPU steps, every machine without."""

from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

COMPILED = any((Path(__file__).parent / "kernels" / "cpu" / "lib").glob("*.so"))


class CompiledDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return COMPILED


class CompiledWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if COMPILED else (python, abi, platform)


setup(distclass=CompiledDistribution, cmdclass={"bdist_wheel": CompiledWheel})
