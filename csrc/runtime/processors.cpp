#include "runtime/processors.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace pyoptim::core {

namespace {

// Processors that a group's quota is worth, or 0 if the group has none: v2 keeps "quota period" in one file,
// v1 a number in each of two, both in microseconds.
double quota_of(const std::string& folder) {
    std::string quota = "max";
    double period = 0;
    if (std::ifstream both(folder + "/cpu.max"); both) {
        both >> quota >> period;
    } else if (std::ifstream v1(folder + "/cpu.cfs_quota_us"); v1) {
        v1 >> quota;
        std::ifstream(folder + "/cpu.cfs_period_us") >> period;
    }
    const double allowed = std::strtod(quota.c_str(), nullptr);  // 0 for "max"
    return allowed > 0 && period > 0 ? allowed / period : 0;
}

}  // namespace

// The smallest quota counts: that of the process's own group or of one above it.
int processor_quota(const std::string& root) {
    double least = 0;
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // "number:controllers:path"
        std::istringstream fields(line);
        std::string number, controllers, path;
        std::getline(fields, number, ':');
        std::getline(fields, controllers, ':');
        std::getline(fields, path);
        const bool v2 = controllers.empty();
        if (!v2 && (',' + controllers + ',').find(",cpu,") == std::string::npos) continue;
        for (;;) {
            for (const std::string& folder : {controllers, std::string("cpu")}) {  // v1 has both, or only one
                const double here = quota_of(root + "/sys/fs/cgroup/" + folder + path);
                if (here > 0 && (least == 0 || here < least)) least = here;
            }
            if (path.empty()) break;
            path.erase(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
        }
    }
    return static_cast<int>(std::ceil(least));
}

int usable_processors() {
    int count = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) count = CPU_COUNT(&allowed);
    if (const int most = processor_quota(); most > 0) count = std::min(count, most);
#endif
    return std::max(1, count);
}

}  // namespace pyoptim::core
