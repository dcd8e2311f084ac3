// A range cut into parts, each in a thread of its own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace earsight {

// work(first, last) for at most `threads` parts of 0 to count - 1; once, with nothing, where count is 0.
template <typename Work>
void in_parts(size_t count, size_t threads, const Work& work) {
    const size_t parts = std::max<size_t>(1, std::min(threads, count));
    const auto part = [&](size_t i) { work(count * i / parts, count * (i + 1) / parts); };
    std::vector<std::thread> others;
    size_t started = 1;
    try {
        for (; started < parts; ++started) others.emplace_back(part, started);
    } catch (const std::system_error&) {  // no more threads to be had: this one does their work
    }
    part(0);
    for (size_t i = started; i < parts; ++i) part(i);
    for (std::thread& other : others) other.join();
}

}  // namespace earsight
