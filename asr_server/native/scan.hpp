// Running averages with gates, unit by unit: c_t = kept_t c_{t-1} + new_t.
#pragma once

#include <cstddef>

namespace earsight {

// Arrays are (frames, units), `initial` is (units): a unit is one number of one utterance of a batch.
struct ScanShape {
    size_t frames, units;
    bool reverse;  // from the last frame to the first
    size_t threads;  // at most; each takes some units through all frames
};

void scan(const ScanShape& shape, const float* inputs, const float* kept, const float* initial, float* states);

// From `outer`, the gradient at the states: the gradients at the inputs, at `kept` and at `initial`.
void scan_backward(const ScanShape& shape, const float* outer, const float* kept, const float* initial,
                   const float* states, float* inner, float* kept_gradient, float* initial_gradient);

}  // namespace earsight
