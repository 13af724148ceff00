// SHA-256 (FIPS 180-4), by the processor's own instructions where it has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pyoptim::core {

class Sha256 {
  public:
    void add(const void* data, std::size_t size);
    // Ends the message, and returns the hash in 64 hexadecimal digits. To be called once.
    std::string digits();

  private:
    static constexpr std::size_t kBlock = 64;

    std::uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char rest_[kBlock] = {};  // the begin of a block that is not complete
    std::size_t held_ = 0;             // bytes in it
    std::uint64_t size_ = 0;           // bytes of the message so far
};

}  // namespace pyoptim::core
