// One pass over memory for each direction: what autograd does in a dozen, with as many arrays between them. Loops over
// neighbouring units are written for the compiler to make vector instructions of, for several kinds of processor.

#include "gates.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parts.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define FOR_ALL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_ALL
#endif
#define INLINE inline __attribute__((always_inline))

namespace earsight {

namespace {

INLINE float number(float value) { return value; }

INLINE float number(Brief value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

INLINE void put(float& place, float value) { place = value; }

INLINE void put(Brief& place, float value) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    place.bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// std::exp in single precision (by the polynomial of Cephes), without calls and branches.
INLINE float exponential(float x) {
    x = x < 87.0f ? x : 87.0f;
    x = x > -87.0f ? x : -87.0f;
    const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 2^23: the integer stays in the lowest bits
    int32_t exponent;
    std::memcpy(&exponent, &shifted, sizeof exponent);
    const float whole = shifted - 12582912.0f;
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const int32_t bits = (exponent - 0x4b400000 + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// A state from the one before it.
template <typename Number>
INLINE void step(size_t units, const Number* __restrict values, const Number* __restrict gates, float heard,
                 const float* before, float* __restrict state) {
    for (size_t i = 0; i < units; ++i) {
        const float kept = sigmoid(number(gates[i])) * heard;
        state[i] = kept * before[i] + (1.0f - kept) * number(values[i]) * heard;
    }
}

template <typename Number>
INLINE void open(size_t units, const Number* __restrict outwards, const float* __restrict ahead,
                 const float* __restrict behind, Number* __restrict opened) {
    for (size_t i = 0; i < units; ++i) {
        const float wide = number(outwards[i]);
        put(opened[i], wide * sigmoid(wide) * (ahead[i] + behind[i]));
    }
}

template <typename Number>
INLINE void open_backward(size_t units, const Number* __restrict outer, const Number* __restrict outwards,
                          const float* __restrict ahead, const float* __restrict behind, Number* __restrict gradient) {
    for (size_t i = 0; i < units; ++i) {
        const float wide = number(outwards[i]), share = sigmoid(wide);
        put(gradient[i], number(outer[i]) * (ahead[i] + behind[i]) * share * (1.0f + wide * (1.0f - share)));
    }
}

// `leaves` is 0 for a frame that does not leave the layer; `following` goes from the state after to this one's before.
template <typename Number>
INLINE void step_backward(size_t units, float leaves, const Number* __restrict outer, const Number* __restrict outwards,
                          const Number* __restrict values, const Number* __restrict gates, float heard,
                          const float* __restrict before, float* __restrict following,
                          Number* __restrict values_gradient, Number* __restrict gates_gradient) {
    for (size_t i = 0; i < units; ++i) {
        const float wide = number(outwards[i]), share = sigmoid(number(gates[i])), kept = share * heard;
        const float gradient = leaves * number(outer[i]) * wide * sigmoid(wide) + following[i];
        put(values_gradient[i], gradient * (1.0f - kept) * heard);
        put(gates_gradient[i], gradient * (before[i] - number(values[i]) * heard) * heard * share * (1.0f - share));
        following[i] = gradient * kept;
    }
}

// Where the numbers of a frame of an utterance lie, from unit `first` on.
template <typename Number>
struct Rows {
    const GatesShape& shape;
    size_t first;

    size_t row(size_t frame, size_t chunk, size_t utterance) const {
        return (frame * shape.chunks + chunk) * shape.batch + utterance;
    }
    template <typename Any>
    Any* part(Any* products, size_t row, size_t which) const {
        return products + (row * 5 + which) * shape.width + first;
    }
    template <typename Any>
    Any* units(Any* states, size_t row) const {
        return states + row * shape.width + first;
    }
    // The state ahead before a frame: of the frame before, of the chunk before, or of the start.
    const float* before(const float* ahead, const float* start, size_t frame, size_t chunk, size_t utterance) const {
        if (frame) return units(ahead, row(frame - 1, chunk, utterance));
        if (chunk) return units(ahead, row(shape.frames() - 1, chunk - 1, utterance));
        return units(start, utterance);
    }
};

enum Part { VALUES_AHEAD, VALUES_BEHIND, GATES_AHEAD, GATES_BEHIND, OUTWARDS };

template <typename Number>
INLINE void forward_units(const GatesShape& shape, size_t first, size_t last, const Number* products,
                          const float* heard, const float* start, float* ahead, float* behind, Number* opened) {
    const Rows<Number> at{shape, first};
    const size_t units = last - first;
    const std::vector<float> nothing(units, 0.0f);
    for (size_t frame = shape.window; frame-- > 0;)
        for (size_t chunk = 0; chunk < shape.chunks; ++chunk)
            for (size_t utterance = 0; utterance < shape.batch; ++utterance) {
                const size_t row = at.row(frame, chunk, utterance);
                const bool begins = frame + 1 == shape.window;
                const float* before = begins ? nothing.data() : at.units(behind, at.row(frame + 1, chunk, utterance));
                step(units, at.part(products, row, VALUES_BEHIND), at.part(products, row, GATES_BEHIND), heard[row],
                     before, at.units(behind, row));
            }
    for (size_t chunk = 0; chunk < shape.chunks; ++chunk)
        for (size_t frame = 0; frame < shape.reach(); ++frame)
            for (size_t utterance = 0; utterance < shape.batch; ++utterance) {
                const size_t row = at.row(frame, chunk, utterance);
                step(units, at.part(products, row, VALUES_AHEAD), at.part(products, row, GATES_AHEAD), heard[row],
                     at.before(ahead, start, frame, chunk, utterance), at.units(ahead, row));
                open(units, at.part(products, row, OUTWARDS), at.units(ahead, row), at.units(behind, row),
                     at.units(opened, row));
            }
}

template <typename Number>
INLINE void backward_units(const GatesShape& shape, size_t first, size_t last, const Number* outer, const float* end,
                           const Number* products, const float* heard, const float* start, const float* ahead,
                           const float* behind, Number* inner, float* start_gradient) {
    const Rows<Number> at{shape, first};
    const size_t units = last - first, reach = shape.reach();
    const std::vector<float> nothing(units, 0.0f);
    std::vector<float> following(shape.chunks * shape.batch * units, 0.0f);
    for (size_t frame = 0; frame < shape.window; ++frame)
        for (size_t chunk = 0; chunk < shape.chunks; ++chunk)
            for (size_t utterance = 0; utterance < shape.batch; ++utterance) {
                const size_t row = at.row(frame, chunk, utterance);
                const bool leaves = frame < reach, begins = frame + 1 == shape.window;
                const Number* above = at.units(outer, leaves ? row : 0);
                const float* before = begins ? nothing.data() : at.units(behind, at.row(frame + 1, chunk, utterance));
                step_backward(units, leaves ? 1.0f : 0.0f, above, at.part(products, row, OUTWARDS),
                              at.part(products, row, VALUES_BEHIND), at.part(products, row, GATES_BEHIND), heard[row],
                              before, following.data() + (chunk * shape.batch + utterance) * units,
                              at.part(inner, row, VALUES_BEHIND), at.part(inner, row, GATES_BEHIND));
                if (leaves) {
                    open_backward(units, above, at.part(products, row, OUTWARDS), at.units(ahead, row),
                                  at.units(behind, row), at.part(inner, row, OUTWARDS));
                    continue;
                }
                for (const Part part : {VALUES_AHEAD, GATES_AHEAD, OUTWARDS})
                    std::memset(at.part(inner, row, part), 0, units * sizeof(Number));
            }
    following.assign(shape.batch * units, 0.0f);  // within a chunk, from its right context first
    for (size_t utterance = 0; utterance < shape.batch; ++utterance)
        std::memcpy(at.units(start_gradient, utterance), at.units(end, utterance), units * sizeof(float));
    for (size_t chunk = shape.chunks; chunk-- > 0;)
        for (size_t frame = reach; frame-- > 0;)
            for (size_t utterance = 0; utterance < shape.batch; ++utterance) {
                const size_t row = at.row(frame, chunk, utterance);
                float* here = following.data() + utterance * units;
                float* next = at.units(start_gradient, utterance);  // what the chunk after this one gives back
                if (frame + 1 == shape.frames())
                    for (size_t i = 0; i < units; ++i) here[i] += next[i];
                step_backward(units, 1.0f, at.units(outer, row), at.part(products, row, OUTWARDS),
                              at.part(products, row, VALUES_AHEAD), at.part(products, row, GATES_AHEAD), heard[row],
                              at.before(ahead, start, frame, chunk, utterance), here,
                              at.part(inner, row, VALUES_AHEAD), at.part(inner, row, GATES_AHEAD));
                if (frame == 0) {
                    std::memcpy(next, here, units * sizeof(float));
                    std::fill_n(here, units, 0.0f);
                }
            }
}

// Clones are made of functions, not of templates.
FOR_ALL void forward_part(const GatesShape& shape, size_t first, size_t last, const float* products, const float* heard,
                          const float* start, float* ahead, float* behind, float* opened) {
    forward_units(shape, first, last, products, heard, start, ahead, behind, opened);
}

FOR_ALL void forward_part(const GatesShape& shape, size_t first, size_t last, const Brief* products, const float* heard,
                          const float* start, float* ahead, float* behind, Brief* opened) {
    forward_units(shape, first, last, products, heard, start, ahead, behind, opened);
}

FOR_ALL void backward_part(const GatesShape& shape, size_t first, size_t last, const float* outer, const float* end,
                           const float* products, const float* heard, const float* start, const float* ahead,
                           const float* behind, float* inner, float* start_gradient) {
    backward_units(shape, first, last, outer, end, products, heard, start, ahead, behind, inner, start_gradient);
}

FOR_ALL void backward_part(const GatesShape& shape, size_t first, size_t last, const Brief* outer, const float* end,
                           const Brief* products, const float* heard, const float* start, const float* ahead,
                           const float* behind, Brief* inner, float* start_gradient) {
    backward_units(shape, first, last, outer, end, products, heard, start, ahead, behind, inner, start_gradient);
}

}  // namespace

template <typename Number>
void gated_scan(const GatesShape& shape, const Number* products, const float* heard, const float* start, float* ahead,
                float* behind, Number* opened) {
    in_parts(shape.width, shape.threads, [&](size_t first, size_t last) {
        forward_part(shape, first, last, products, heard, start, ahead, behind, opened);
    });
}

template <typename Number>
void gated_scan_backward(const GatesShape& shape, const Number* outer, const float* last, const Number* products,
                         const float* heard, const float* start, const float* ahead, const float* behind,
                         Number* products_gradient, float* start_gradient) {
    in_parts(shape.width, shape.threads, [&](size_t from, size_t to) {
        backward_part(shape, from, to, outer, last, products, heard, start, ahead, behind, products_gradient,
                      start_gradient);
    });
}

template void gated_scan(const GatesShape&, const float*, const float*, const float*, float*, float*, float*);
template void gated_scan(const GatesShape&, const Brief*, const float*, const float*, float*, float*, Brief*);
template void gated_scan_backward(const GatesShape&, const float*, const float*, const float*, const float*,
                                  const float*, const float*, const float*, float*, float*);
template void gated_scan_backward(const GatesShape&, const Brief*, const float*, const Brief*, const float*,
                                  const float*, const float*, const float*, Brief*, float*);

}  // namespace earsight
