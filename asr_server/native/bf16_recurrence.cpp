// Each thread takes some rows of the batch through all frames. A panel of 32 outputs meets up to 8 rows at a time, whose
// sums stay in 16 registers. For widths up to 512 the packed weights fit the second cache of one core.
//
// As in byte_matrix.cpp the functions carry the processor's features themselves.

#include "bf16_recurrence.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "byte_matrix.hpp"
#include "parts.hpp"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC bug 105593: its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace earsight {

namespace {

constexpr size_t LANES = 16;  // 32-bit numbers of a register
constexpr size_t PANEL = 2 * LANES;
constexpr size_t PAIR = 2;  // numbers that one instruction multiplies and adds up
constexpr int MOST_ROWS = 8;

constexpr size_t up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// The first `count` lanes, of 16 at most.
__mmask16 lanes(size_t count) { return static_cast<__mmask16>((1u << std::min(count, LANES)) - 1); }

// To the nearest, ties to even; what is no number stays none.
uint16_t rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A square matrix, or its transpose, as (panels, pairs of inputs, 32 outputs, 2 inputs), zeros beyond its edges.
struct Packed {
    Packed(const float* weight, size_t width, bool transposed)
        : width(width), pairs(up(width, PAIR) / PAIR), numbers(up(width, PANEL) * pairs * PAIR, 0) {
        const size_t row = transposed ? 1 : width, column = transposed ? width : 1;
        for (size_t output = 0; output < width; ++output) {
            uint16_t* panel = numbers.data() + output / PANEL * pairs * PANEL * PAIR + output % PANEL * PAIR;
            for (size_t input = 0; input < width; ++input)
                panel[input / PAIR * PANEL * PAIR + input % PAIR] = rounded(weight[output * row + input * column]);
        }
    }

    size_t width, pairs;
    AlignedVector<uint16_t> numbers;
};

// What a frame reads and writes for some rows of the batch.
struct Frame {
    const float* added;     // inputs, or the outer gradient
    const float* gate;      // states, backward only
    const uint16_t* before; // the rows that meet the weights
    float* results;
    uint16_t* after;        // the results, rounded
    size_t stride;          // of `before` and `after`
    float clip;
};

template <int ROWS, bool BACKWARD>
BF16 void tile(const Frame& frame, const Packed& weight, size_t first_row, size_t first) {
    __m512 sums[ROWS][2];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) sums[row][0] = sums[row][1] = _mm512_setzero_ps();
    const uint16_t* before = frame.before + first_row * frame.stride;
    const uint16_t* numbers = weight.numbers.data() + first * weight.pairs * PAIR;
    for (size_t pair = 0; pair < weight.pairs; ++pair, before += PAIR, numbers += PANEL * PAIR) {
        const auto left = (__m512bh)_mm512_load_si512(numbers);
        const auto right = (__m512bh)_mm512_load_si512(numbers + LANES * PAIR);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            int32_t both;
            std::memcpy(&both, before + row * frame.stride, sizeof both);
            const auto input = (__m512bh)_mm512_set1_epi32(both);
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], input, left);
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], input, right);
        }
    }
    const __m512 low = _mm512_setzero_ps(), high = _mm512_set1_ps(frame.clip);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const size_t from = first + half * LANES;
        const __mmask16 there = lanes(weight.width > from ? weight.width - from : 0);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const size_t at = (first_row + row) * weight.width + from;
            __m512 result = _mm512_add_ps(sums[row][half], _mm512_maskz_loadu_ps(there, frame.added + at));
            if (BACKWARD) {
                const __m512 state = _mm512_maskz_loadu_ps(there, frame.gate + at);
                const __mmask16 open = _mm512_cmp_ps_mask(state, low, _CMP_GT_OQ) &
                                       _mm512_cmp_ps_mask(state, high, _CMP_LT_OQ);
                result = _mm512_maskz_mov_ps(open, result);
            } else {
                // Of a number and no number, these two give their second operand: errors stay visible.
                result = _mm512_min_ps(high, _mm512_max_ps(low, result));
            }
            _mm512_mask_storeu_ps(frame.results + at, there, result);
            const auto narrow = (__m256i)_mm512_cvtneps_pbh(result);
            _mm256_store_si256(reinterpret_cast<__m256i*>(frame.after + (first_row + row) * frame.stride + from), narrow);
        }
    }
}

using Kernel = void (*)(const Frame&, const Packed&, size_t, size_t);

template <bool BACKWARD, int... LESS>
constexpr std::array<Kernel, sizeof...(LESS)> kernels(std::integer_sequence<int, LESS...>) {
    return {tile<LESS + 1, BACKWARD>...};
}

constexpr auto FORWARD_KERNELS = kernels<false>(std::make_integer_sequence<int, MOST_ROWS>());
constexpr auto BACKWARD_KERNELS = kernels<true>(std::make_integer_sequence<int, MOST_ROWS>());

// All frames of the rows from `first` to `last`. `added`, `gate` and `results` are of the first row of frame 0.
void run_rows(const RecurrenceShape& shape, const Packed& weight, const std::array<Kernel, MOST_ROWS>& kernels,
              const float* added, const float* gate, const float* initial, float* results, size_t first, size_t last) {
    const size_t rows = last - first, stride = up(shape.width, PANEL) + PANEL;  // not a power of two: see ByteMatrix
    AlignedVector<uint16_t> before(rows * stride, 0), after(rows * stride, 0);
    if (initial)
        for (size_t row = 0; row < rows; ++row)
            for (size_t i = 0; i < shape.width; ++i)
                before[row * stride + i] = rounded(initial[(first + row) * shape.width + i]);
    const size_t tiles = up(rows, MOST_ROWS) / MOST_ROWS;
    for (size_t i = 0; i < shape.frames; ++i) {
        const size_t t = shape.reverse ? shape.frames - 1 - i : i;
        const size_t at = (t * shape.batch + first) * shape.width;
        const Frame frame{added + at, gate ? gate + at : nullptr, before.data(), results + at, after.data(),
                          stride,     shape.clip};
        for (size_t output = 0; output < shape.width; output += PANEL)
            for (size_t part = 0; part < tiles; ++part) {
                const size_t from = rows * part / tiles, to = rows * (part + 1) / tiles;
                kernels[to - from - 1](frame, weight, from, output);
            }
        std::swap(before, after);
    }
}

void run(const RecurrenceShape& shape, const Packed& weight, const std::array<Kernel, MOST_ROWS>& kernels,
         const float* added, const float* gate, const float* initial, float* results) {
    in_parts(shape.batch, shape.threads, [&](size_t first, size_t last) {
        if (last > first) run_rows(shape, weight, kernels, added, gate, initial, results, first, last);
    });
}

void required() {
    if (!bf16_supported()) throw std::invalid_argument("this processor lacks AVX-512 BF16");
}

}  // namespace

bool bf16_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

void bf16_recur(const RecurrenceShape& shape, const float* inputs, const float* weight, const float* initial,
                float* states) {
    required();
    run(shape, Packed(weight, shape.width, false), FORWARD_KERNELS, inputs, nullptr, initial, states);
}

void bf16_recur_backward(const RecurrenceShape& shape, const float* outer, const float* weight, const float* states,
                         float* inner) {
    required();
    RecurrenceShape back = shape;
    back.reverse = !shape.reverse;
    run(back, Packed(weight, shape.width, true), BACKWARD_KERNELS, outer, states, nullptr, inner);
}

}  // namespace earsight

#else

namespace earsight {

bool bf16_supported() { return false; }

void bf16_recur(const RecurrenceShape&, const float*, const float*, const float*, float*) {
    throw std::invalid_argument("bfloat16 recurrences are compiled for x86-64 only");
}

void bf16_recur_backward(const RecurrenceShape&, const float*, const float*, const float*, float*) {
    throw std::invalid_argument("bfloat16 recurrences are compiled for x86-64 only");
}

}  // namespace earsight

#endif
