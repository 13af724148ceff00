// What a shared library shows.
#pragma once

#if defined(__GNUC__)
#define PYOPTIM_API __attribute__((visibility("default")))
#else
#define PYOPTIM_API
#endif
