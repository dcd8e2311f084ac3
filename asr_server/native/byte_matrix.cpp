// The product of bytes. A panel of 32 outputs is read from memory once and meets all rows, up to 8 at a time, whose sums stay
// in 16 registers: each line of weights that is loaded is used 8 times, each group of inputs 32 times.
//
// The functions carry the processor's features themselves: were the file compiled with them, the linker might take its
// copies of the standard library's templates for the whole module, and other processors could not load that.

#include "byte_matrix.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC bug 105593: its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

namespace earsight {

namespace {

constexpr size_t LANES = 16;  // 32-bit numbers of a register
constexpr size_t PANEL = 2 * LANES;
constexpr size_t GROUP = 4;  // bytes that one instruction multiplies and adds up
constexpr size_t MOST_ROWS = 8;  // with more, GCC 12 moves sums to memory and back
constexpr float TINY = 1e-12f;  // so that rows of zeros can be divided by their scale

constexpr size_t up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// The first `count` lanes, of 16 at most.
__mmask16 lanes(size_t count) { return static_cast<__mmask16>((1u << std::min(count, LANES)) - 1); }

// One tile: some rows through one panel.
struct Tile {
    const uint8_t* bytes;  // of the first row
    size_t stride;         // from row to row, in bytes
    const float* row_scale;
    const int8_t* weight;  // of the panel
    size_t groups;
    const float* scale;
    const int32_t* offset;
    const float* added;  // first row and output
    size_t added_stride;
    float low, high;
    float* results;
    size_t results_stride;
    size_t outputs;  // of the panel that there are
};

template <int ROWS>
VNNI void multiply_tile(const Tile& tile) {
    __m512i sums[ROWS][2];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) sums[row][0] = sums[row][1] = _mm512_setzero_si512();
    // What the end of the tile needs arrives while the sums are made.
    for (int row = 0; row < ROWS; ++row) {
        for (size_t first = 0; first < tile.outputs && first < PANEL; first += LANES) {
            __builtin_prefetch(tile.added + row * tile.added_stride + first);
            __builtin_prefetch(tile.results + row * tile.results_stride + first, 1);
        }
    }
    const uint8_t* bytes = tile.bytes;
    const int8_t* weight = tile.weight;
    const size_t stride = tile.stride;
    for (size_t group = 0; group < tile.groups; ++group, bytes += GROUP, weight += PANEL * GROUP) {
        const __m512i left = _mm512_load_si512(weight), right = _mm512_load_si512(weight + LANES * GROUP);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const __m512i input = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(bytes + row * stride));
            sums[row][0] = _mm512_dpbusd_epi32(sums[row][0], input, left);
            sums[row][1] = _mm512_dpbusd_epi32(sums[row][1], input, right);
        }
    }
    const __m512 low = _mm512_set1_ps(tile.low), high = _mm512_set1_ps(tile.high);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const size_t first = half * LANES;
        const __mmask16 there = lanes(tile.outputs > first ? tile.outputs - first : 0);
        const __m512 scale = _mm512_load_ps(tile.scale + first);
        const __m512i offset = _mm512_load_si512(tile.offset + first);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[row][half], offset));
            const __m512 scales = _mm512_mul_ps(scale, _mm512_set1_ps(tile.row_scale[row]));
            const __m512 added = _mm512_maskz_loadu_ps(there, tile.added + row * tile.added_stride + first);
            // Of a number and no number, these two give their second operand: errors stay visible.
            __m512 result = _mm512_max_ps(low, _mm512_fmadd_ps(sum, scales, added));
            result = _mm512_min_ps(high, result);
            _mm512_mask_storeu_ps(tile.results + row * tile.results_stride + first, there, result);
        }
    }
}

using Kernel = void (*)(const Tile&);

template <int... LESS>
constexpr std::array<Kernel, sizeof...(LESS)> kernels(std::integer_sequence<int, LESS...>) {
    return {multiply_tile<LESS + 1>...};
}

constexpr auto KERNELS = kernels(std::make_integer_sequence<int, MOST_ROWS>());

// Largest absolute value. Compared as integers, which order as numbers do and have NaN above all of them.
VNNI float largest(const float* row, size_t count) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i found = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += LANES) {
        const __m512i values = _mm512_maskz_loadu_epi32(lanes(count - i), row + i);
        found = _mm512_max_epi32(found, _mm512_and_si512(values, magnitude));
    }
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(found))));
}

VNNI void to_bytes(const float* row, size_t count, float steps, int zero, uint8_t* bytes) {
    const __m512 factor = _mm512_set1_ps(steps);
    const __m512i middle = _mm512_set1_epi32(zero), none = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += LANES) {
        const __m512 values = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(count - i), row + i), factor);
        const __m512i rounded = _mm512_add_epi32(_mm512_cvtps_epi32(values), middle);
        const __m128i narrow = _mm512_cvtusepi32_epi8(_mm512_max_epi32(rounded, none));
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes + i), narrow);
    }
}

}  // namespace

struct ByteMatrix::Rows {
    // One line more than the bytes need: rows a power of two apart would meet in the same places of the cache.
    Rows(size_t count, size_t inputs) : count(count), stride(up(inputs, 64) + 64), bytes(count * stride), scale(count) {}

    size_t count, stride;
    AlignedVector<uint8_t> bytes;
    std::vector<float> scale;
    bool silent = false;  // all zero, as before the first frame: their product needs no work
};

bool ByteMatrix::supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

ByteMatrix::ByteMatrix(const float* weight, const float* bias, size_t outputs, size_t inputs, bool signed_inputs)
    : outputs_(outputs), inputs_(inputs), signed_(signed_inputs) {
    if (!supported()) throw std::invalid_argument("this processor lacks AVX-512 VNNI, which multiplies bytes");
    const size_t padded = up(outputs, PANEL), groups = up(inputs, GROUP) / GROUP;
    weight_.assign(padded * groups * GROUP, 0);
    scale_.assign(padded, 0);
    bias_.assign(padded, 0);
    offset_.assign(padded, 0);
    for (size_t output = 0; output < outputs; ++output) {
        const float* row = weight + output * inputs;
        float most = TINY;
        for (size_t input = 0; input < inputs; ++input) most = std::max(most, std::abs(row[input]));
        const float scale = most / 127;
        int8_t* panel = weight_.data() + output / PANEL * groups * PANEL * GROUP + output % PANEL * GROUP;
        int32_t sum = 0;
        for (size_t input = 0; input < inputs; ++input) {
            const auto rounded = static_cast<int8_t>(std::nearbyint(row[input] / scale));
            panel[input / GROUP * PANEL * GROUP + input % GROUP] = rounded;
            sum += rounded;
        }
        scale_[output] = scale;
        bias_[output] = bias ? bias[output] : 0;
        offset_[output] = signed_ ? 128 * sum : 0;
    }
}

void ByteMatrix::quantise(const float* rows, size_t count, Rows& into) const {
    const float steps = signed_ ? 127 : 255;
    into.silent = !signed_;
    for (size_t row = 0; row < count; ++row) {
        const float* values = rows + row * inputs_;
        float most = largest(values, inputs_);
        if (most != 0) into.silent = false;
        if (most < TINY) most = TINY;
        into.scale[row] = most / steps;
        to_bytes(values, inputs_, steps / most, signed_ ? 128 : 0, into.bytes.data() + row * into.stride);
    }
}

void ByteMatrix::multiply(const Rows& rows, const float* added, size_t added_stride, float low, float high,
                          float* results) const {
    const size_t groups = up(inputs_, GROUP) / GROUP, tiles = up(rows.count, MOST_ROWS) / MOST_ROWS;
    const size_t needed = rows.silent ? 0 : groups;
    for (size_t first = 0; first < outputs_; first += PANEL) {
        for (size_t tile = 0; tile < tiles; ++tile) {  // as even as can be: few rows use a panel badly
            const size_t from = rows.count * tile / tiles, to = rows.count * (tile + 1) / tiles;
            KERNELS[to - from - 1]({rows.bytes.data() + from * rows.stride, rows.stride, rows.scale.data() + from,
                                    weight_.data() + first * groups * GROUP, needed, scale_.data() + first,
                                    offset_.data() + first, added + from * added_stride + first, added_stride, low, high,
                                    results + from * outputs_ + first, outputs_, outputs_ - first});
        }
    }
}

void ByteMatrix::multiply(const float* rows, size_t count, float low, float high, float* results) const {
    Rows rounded(count, inputs_);
    quantise(rows, count, rounded);
    multiply(rounded, bias_.data(), 0, low, high, results);
}

void ByteMatrix::recur(const float* inputs, size_t frames, size_t batch, const float* initial, float clip, bool reverse,
                       float* states) const {
    Rows rounded(batch, inputs_);
    const float* before = initial;
    for (size_t i = 0; i < frames; ++i) {
        const size_t at = (reverse ? frames - 1 - i : i) * batch * outputs_;
        quantise(before, batch, rounded);
        multiply(rounded, inputs + at, outputs_, 0, clip, states + at);
        before = states + at;
    }
}

}  // namespace earsight

#else

namespace earsight {

bool ByteMatrix::supported() { return false; }

ByteMatrix::ByteMatrix(const float*, const float*, size_t, size_t, bool) {
    throw std::invalid_argument("8-bit products are compiled for x86-64 only");
}

void ByteMatrix::multiply(const float*, size_t, float, float, float*) const {}

void ByteMatrix::recur(const float*, size_t, size_t, const float*, float, bool, float*) const {}

}  // namespace earsight

#endif
