// Files of networks: files load FILE... prints for each file "loaded" or the error. files save MODEL TARGET
// loads a network and saves it to the other file for ever, by two threads, until the program is killed.
// files once MODEL TARGET saves it once, and prints "saved" or the error; a target named "null byte" has one.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>

#include "pyoptim/network.hpp"

using Network = pyoptim::Network<float>;

template <class Call>
static bool said(const char* done, Call call) {
    try {
        call();
        std::printf("%s\n", done);
        return true;
    } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        return false;
    }
}

int main(int argc, char** argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "load") {
        for (int i = 2; i < argc; ++i) said("loaded", [&] { Network::load(argv[i]); });
        return 0;
    }
    if (argc != 4) return 2;
    const Network network = Network::load(argv[2]);
    std::string target = argv[3];
    if (target == "null byte") target = std::string("model\0x", 7);
    if (mode == "once") {
        said("saved", [&] { network.save(target); });
        return 0;
    }
    const auto save = [&] {
        try {
            for (;;) network.save(target);
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s\n", error.what());
            std::_Exit(1);
        }
    };
    std::thread other(save);
    save();
}
