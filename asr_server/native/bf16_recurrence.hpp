// The recurrence of a training step in bfloat16 (AVX-512 BF16), forward and backward.
#pragma once

#include <cstddef>

namespace earsight {

// Sizes of a recurrence, and how it runs. Arrays are (frames, batch, width), weights (width, width).
struct RecurrenceShape {
    size_t frames, batch, width;
    float clip;
    bool reverse;  // from the last frame to the first
    size_t threads;  // at most; each takes some rows of the batch, so none waits for another before the end
};

// Whether this processor has the instructions; nothing else may be called where it has not.
bool bf16_supported();

// h_t = min(max(z_t + W h_{t-1}, 0), clip) from h = initial (batch, width): inputs z -> states h. W and the h that it
// meets are rounded to bfloat16; sums and states are not.
void bf16_recur(const RecurrenceShape& shape, const float* inputs, const float* weight, const float* initial,
                float* states);

// The gradient at z from `outer`, the gradient at h: inner_t = (outer_t + W^T inner_{t+1}) where 0 < h_t < clip, else 0.
void bf16_recur_backward(const RecurrenceShape& shape, const float* outer, const float* weight, const float* states,
                         float* inner);

}  // namespace earsight
