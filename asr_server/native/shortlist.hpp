// The candidates of a frame, of which the best few go on.
//
// A histogram of their ranks (on a logarithmic scale: the leading bits of a positive double) is kept while they come,
// so the rank that a candidate must have to be among the best is known at every moment to a few per cent, and most are
// turned away at once. In the end one pass over the histogram puts the rest in order; only the bucket in which the
// limit falls is looked at closely.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace earsight {

struct Candidate {
    double rank;
    int32_t slot;
    int32_t symbol;
};

class Shortlist {
  public:
    // For a new frame: the best `width`, none below `floor`; `typical` is about the highest rank.
    void begin(size_t width, double floor, double typical) {
        width_ = width;
        floor_ = floor;
        base_ = leading_bits(typical) - BUCKETS * 3 / 4;
        lowest_ = bucket(floor);
        count_ = 0;
        counts_.fill(0);
        candidates_.clear();
    }

    // Below it, nothing can be among the best any more.
    double floor() const { return floor_; }

    void add(double rank, int32_t slot, int32_t symbol) {
        if (!(rank >= floor_ && rank >= TINY)) return;
        candidates_.push_back({rank, slot, symbol});
        ++counts_[bucket(rank)];
        ++count_;
        while (count_ - counts_[lowest_] >= width_) {
            count_ -= counts_[lowest_++];
            floor_ = std::max(floor_, rank_of(lowest_));
        }
    }

    // The best ones, roughly in order, and the very best first.
    const std::vector<Candidate>& best() {
        std::array<uint32_t, BUCKETS> ends;
        uint32_t end = 0;
        for (int64_t i = BUCKETS; i-- > lowest_;) ends[i] = end += counts_[i];
        best_.resize(end);
        for (const Candidate& candidate : candidates_)
            if (const int64_t i = bucket(candidate.rank); i >= lowest_) best_[--ends[i]] = candidate;
        const auto higher = [](const Candidate& a, const Candidate& b) { return a.rank > b.rank; };
        if (best_.size() > width_) {
            const auto last = best_.begin() + static_cast<std::ptrdiff_t>(width_);
            const auto from = best_.begin() + ends[bucket(last->rank)];
            std::nth_element(from, last, best_.end(), higher);
            best_.resize(width_);
        }
        if (!best_.empty()) {
            const auto top = best_.begin() + counts_[bucket(best_[0].rank)];
            std::iter_swap(best_.begin(), std::min_element(best_.begin(), std::min(top, best_.end()), higher));
        }
        return best_;
    }

  private:
    static constexpr double TINY = std::numeric_limits<double>::min();  // what is below it cannot be scaled up again
    static constexpr int64_t BUCKETS = 1024;
    static constexpr int SHIFT = 48;  // 4 bits of the mantissa are left: 16 buckets to a factor of two

    static int64_t leading_bits(double rank) {
        int64_t bits;
        std::memcpy(&bits, &rank, sizeof bits);
        return bits >> SHIFT;
    }

    // The outermost two hold whatever lies beyond.
    int64_t bucket(double rank) const { return std::clamp<int64_t>(leading_bits(rank) - base_, 0, BUCKETS - 1); }

    double rank_of(int64_t bucket) const {
        const int64_t bits = (base_ + bucket) << SHIFT;
        double rank;
        std::memcpy(&rank, &bits, sizeof rank);
        return rank;
    }

    size_t width_ = 0;
    double floor_ = 0;
    int64_t base_ = 0, lowest_ = 0;  // what bucket 0 begins with, and the first bucket above the floor
    size_t count_ = 0;               // of the candidates in buckets from `lowest_` on
    std::array<uint32_t, BUCKETS> counts_{};
    std::vector<Candidate> candidates_, best_;
};

}  // namespace earsight
