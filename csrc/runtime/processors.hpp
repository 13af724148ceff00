// How many processors this process may use.
#pragma once

#include <string>

namespace pyoptim::core {

// The least of the machine's processors, of those that the process may run on, and of the quota of its
// control groups. pyoptim/runtime/threads.py is the twin.
int usable_processors();

// How many processors the quota of this process's control groups is worth (cgroup v1 and v2; 1.5 count as 2),
// or 0 if it has none. `root` stands before /proc and /sys: a test has files of its own.
int processor_quota(const std::string& root = "");

}  // namespace pyoptim::core
