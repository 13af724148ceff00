/* What a shared library shows. A program that is linked with the static one defines PYOPTIM_STATIC, as CMake
 * does: then a plugin that holds the library exports none of the functions in it. */
#pragma once

#if defined(__GNUC__) && !defined(PYOPTIM_STATIC)
#define PYOPTIM_API __attribute__((visibility("default")))
#else
#define PYOPTIM_API
#endif
