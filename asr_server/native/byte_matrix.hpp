// A matrix of 8-bit weights for processors that multiply bytes (AVX-512 VNNI), and the recurrence through it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace earsight {

// std::vector on the boundaries of cache lines, which are as wide as a vector register.
template <typename T>
struct Aligned {
    using value_type = T;
    static constexpr std::align_val_t LINE{64};
    Aligned() = default;
    template <typename U>
    Aligned(const Aligned<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), LINE)); }
    void deallocate(T* at, size_t) { ::operator delete(at, LINE); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
template <typename T>
using AlignedVector = std::vector<T, Aligned<T>>;

// y = W x + b with W rounded to -127..127 and a scale for each output, x to bytes with a scale for each row. Immutable:
// any number of threads may use one.
class ByteMatrix {
public:
    // Whether this processor has the instructions; nothing else may be called where it has not.
    static bool supported();

    // weight (outputs, inputs), bias (outputs) or null. Rows of signed inputs become 1..255 around 128; others, where
    // what is negative counts as zero, become 0..255.
    ByteMatrix(const float* weight, const float* bias, size_t outputs, size_t inputs, bool signed_inputs);

    size_t outputs() const { return outputs_; }
    size_t inputs() const { return inputs_; }

    // rows (count, inputs) -> results (count, outputs), cut off below `low` and above `high`
    void multiply(const float* rows, size_t count, float low, float high, float* results) const;

    // h_t = min(max(z_t + W h_{t-1}, 0), clip) from h = initial: inputs z (frames, batch, outputs), initial
    // (batch, outputs) -> states (frames, batch, outputs). In reverse from the last frame to the first. W is square, its
    // inputs are not signed.
    void recur(const float* inputs, size_t frames, size_t batch, const float* initial, float clip, bool reverse,
               float* states) const;

private:
    struct Rows;

    void quantise(const float* rows, size_t count, Rows& into) const;
    void multiply(const Rows& rows, const float* added, size_t added_stride, float low, float high,
                  float* results) const;

    size_t outputs_, inputs_;
    bool signed_;
    AlignedVector<int8_t> weight_;  // (panels, groups of 4 inputs, 32 outputs, 4 inputs), zeros beyond the matrix
    AlignedVector<float> scale_;    // of each output
    AlignedVector<float> bias_;
    AlignedVector<int32_t> offset_;  // of each output: what signed inputs' 128 adds to its sum
};

}  // namespace earsight
