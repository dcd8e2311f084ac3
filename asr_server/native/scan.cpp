// A frame is one pass over neighbouring numbers, which the compiler makes vector instructions of; memory sets the pace.

#include "scan.hpp"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

namespace earsight {

namespace {

// work(first, last) for parts of the units, each in a thread of its own.
template <typename Work>
void in_parts(const ScanShape& shape, const Work& work) {
    const size_t parts = std::max<size_t>(1, std::min(shape.threads, shape.units));
    const auto part = [&](size_t i) { work(shape.units * i / parts, shape.units * (i + 1) / parts); };
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

}  // namespace

void scan(const ScanShape& shape, const float* inputs, const float* kept, const float* initial, float* states) {
    in_parts(shape, [&](size_t first, size_t last) {
        const float* before = initial;
        for (size_t i = 0; i < shape.frames; ++i) {
            const size_t at = (shape.reverse ? shape.frames - 1 - i : i) * shape.units;
            const float *__restrict in = inputs + at, *__restrict keep = kept + at;
            float* __restrict out = states + at;
            for (size_t unit = first; unit < last; ++unit) out[unit] = keep[unit] * before[unit] + in[unit];
            before = out;
        }
    });
}

void scan_backward(const ScanShape& shape, const float* outer, const float* kept, const float* initial,
                   const float* states, float* inner, float* kept_gradient, float* initial_gradient) {
    in_parts(shape, [&](size_t first, size_t last) {
        float* __restrict following = initial_gradient;  // what the frame after gives back
        std::fill(following + first, following + last, 0.0f);
        for (size_t i = 0; i < shape.frames; ++i) {
            const size_t t = shape.reverse ? i : shape.frames - 1 - i, at = t * shape.units;
            const bool begins = i + 1 == shape.frames;
            const float* before = begins ? initial : states + (shape.reverse ? at + shape.units : at - shape.units);
            const float *__restrict out = outer + at, *__restrict keep = kept + at;
            float *__restrict in = inner + at, *__restrict gate = kept_gradient + at;
            for (size_t unit = first; unit < last; ++unit) {
                const float gradient = out[unit] + following[unit];
                in[unit] = gradient;
                gate[unit] = gradient * before[unit];
                following[unit] = gradient * keep[unit];
            }
        }
    });
}

}  // namespace earsight
