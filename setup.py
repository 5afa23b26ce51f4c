"""Drives CMake: builds csrc into dsengine/ops/libdsengine.so and maps kernels/ to dsengine.kernels."""

import os
import subprocess
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """The one extension is a plain shared library: no PyInit, no Python.h."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        work = Path(self.build_temp).resolve()
        cuda = os.environ.get("DSENGINE_CUDA", "AUTO")
        if cuda not in ("0", "1", "AUTO"):
            raise SystemExit(f"DSENGINE_CUDA={cuda!r} is not legal: 0 (never), 1 (must), or unset (when nvcc is found)")
        # Fresh: an earlier build's cache names the ninja of a build environment that pip has removed since.
        configure = ["cmake", "--fresh", "-S", str(ROOT), "-B", str(work), "-G", "Ninja",
                     "-DCMAKE_BUILD_TYPE=Release", f"-DDSENGINE_CUDA={cuda}",
                     f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(work)], check=True)


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3: the library depends on the platform, not on the interpreter."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


kernel_packages = ["dsengine.kernels"] + [f"dsengine.kernels.{p}" for p in find_packages("kernels")]
setup(
    packages=find_packages(include=["dsengine", "dsengine.*"]) + kernel_packages,
    package_dir={"dsengine.kernels": "kernels"},
    package_data={"dsengine.study": ["examples/*.yaml"]},
    ext_modules=[Extension("dsengine.ops.libdsengine", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
