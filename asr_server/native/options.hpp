// What a search is told; the field names and meanings are those of asr_server/decoding.py.
#pragma once

#include <cstdint>

namespace earsight {

struct Options {
    int64_t beam_width{};
    double alpha{};
    double beta{};
    double gamma{};
    double token_min_log_prob{};
    double beam_prune_log_prob{};
    double unknown_word_offset{};
    bool lexicon{};
    bool lookahead{};
    int64_t n_best{};
    int64_t horizon{};
};

}  // namespace earsight
