"""A Conan recipe of the checkout that it lies in: conan create CHECKOUT/.packaging."""

from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy


class Pyoptim(ConanFile):
    name = "pyoptim"
    version = "0.1.0"
    description = "Fast training of small and mid-size networks, and optimizer updates of arrays"
    license = "MIT"
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False]}  # noqa: RUF012 (Conan's form)
    default_options = {"shared": False}  # noqa: RUF012
    implements = ("auto_shared_fpic",)

    def export_sources(self):
        checkout = Path(self.recipe_folder).parent
        for pattern in ("CMakeLists.txt", "LICENSE", "csrc/*"):
            copy(self, pattern, checkout, self.export_sources_folder)

    def validate(self):
        check_min_cppstd(self, 17)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        CMakeToolchain(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        copy(self, "LICENSE", self.source_folder, Path(self.package_folder) / "licenses")
        CMake(self).install()

    def package_info(self):  # what the library installs says it all
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs.append("lib/cmake/pyoptim")
        self.cpp_info.set_property("pkg_config_name", "pyoptim")
        self.cpp_info.libs = ["pyoptim"]
        if not self.options.shared:
            self.cpp_info.defines = ["PYOPTIM_STATIC"]
            self.cpp_info.system_libs = ["m", "pthread", "stdc++"]
