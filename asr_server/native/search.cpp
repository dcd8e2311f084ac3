#include "search.hpp"

#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>

namespace earsight {

namespace {

constexpr int32_t BLANK = 0;
constexpr double ROUNDING = 1e-3;     // how far above 0 a log probability may be: a softmax in half precision rounds
constexpr double UNNORMALISED = 0.05;  // how far from 1 the sum of a row may be
constexpr double TINY = std::numeric_limits<double>::min();
constexpr double LN_2 = 0.693147180559945309;

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

}  // namespace

thread_local Search::Scratch Search::scratch_of_thread_;

Search::Search(Options options, Labels labels, std::shared_ptr<const LanguageModel> model,
               std::shared_ptr<const HotWords> hot_words)
    : options_(options), labels_(std::move(labels)), model_(std::move(model)), hot_words_(std::move(hot_words)) {
    scratch_ = &scratch_of_thread_;
    space_ = NOWHERE;
    for (size_t symbol = 1; symbol < labels_.size(); ++symbol)
        if (labels_[symbol] == " ") space_ = static_cast<int32_t>(symbol);
    lexicon_ = model_ ? model_->lexicon() : nullptr;
    if (options_.lookahead && lexicon_ && options_.alpha > 0) {
        weights_ = model_->weights(options_.alpha, options_.unknown_word_offset);
        unknown_weight_ = model_->weight(options_.alpha, NOWHERE, options_.unknown_word_offset);
        hot_weight_ = model_->weight(options_.alpha, NOWHERE, 0);
    }
    spells_ = model_ && model_->characters();
    plain_letters_ = !lexicon_ && !hot_words_ && !spells_;
    prune_ = std::exp(options_.beam_prune_log_prob);
    letter_gain_ = std::exp(options_.gamma);
    space_headroom_ = std::exp(std::max(0.0, options_.beta));

    Record start{0, 0, 0, 0, 0, {}};
    if (model_) start.state = model_->begin();
    const Child silence{lexicon_ ? Trie::ROOT : NOWHERE, hot_words_ ? Trie::ROOT : NOWHERE,
                        hot_words_ ? hot_words_->begin() : 0, 1, 1};
    create(NOWHERE, space_, silence, add_record(start));
    Paths paths;
    paths.node = 0;
    paths.total = paths.blank = paths.best_blank = 1;
    beam_.push_back(paths);
    nodes_[0].slot = 0;
    enter(0);
    sweep();
}

template <typename Real>
void Search::advance(const Real* log_probs, size_t frames, size_t first) {
    scratch_ = &scratch_of_thread_;
    const size_t symbols = labels_.size();
    scratch_->probabilities.resize(std::max<size_t>(frames, 1) * symbols);
    for (size_t frame = 0; frame < frames; ++frame) {
        double sum = 0, highest = -std::numeric_limits<double>::infinity();
        for (size_t i = frame * symbols; i < (frame + 1) * symbols; ++i) {
            const auto value = static_cast<double>(log_probs[i]);
            if (std::isnan(value))
                throw std::invalid_argument("log probabilities hold NaN, first in frame " + std::to_string(first + frame));
            highest = std::max(highest, value);
            sum += scratch_->probabilities[i] = std::exp(value);
        }
        if (highest > ROUNDING)
            throw std::invalid_argument("log probabilities reach " + number(highest) + " in frame " +
                                        std::to_string(first + frame) + ": they are natural logarithms, at most 0");
        if (std::abs(sum - 1) > UNNORMALISED && highest > -std::numeric_limits<double>::infinity())
            throw std::invalid_argument("probabilities of frame " + std::to_string(first + frame) + " add up to " +
                                        number(sum) + ", not to 1: apply log_softmax");
        // Symbols below the threshold are passed over, except the likeliest and the blank.
        for (size_t i = frame * symbols + 1; i < (frame + 1) * symbols; ++i)
            if (log_probs[i] < options_.token_min_log_prob && log_probs[i] < highest) scratch_->probabilities[i] = 0;
    }
    for (size_t frame = 0; frame < frames; ++frame) step(scratch_->probabilities.data() + frame * symbols);
}

template void Search::advance(const float*, size_t, size_t);
template void Search::advance(const double*, size_t, size_t);

void Search::step(const double* probabilities) {
    rank_symbols(probabilities);
    stay(probabilities);
    extend(probabilities);
    const std::vector<Candidate>& best = scratch_->shortlist.best();
    if (!best.empty()) {  // else no prefix can go on: the frame says nothing and only time passes
        rebuild(best, probabilities);
        // A best path falls ever further behind the sum that it is in, so the two are scaled apart.
        const int exponent = std::ilogb(beam_[0].total);
        const double factor = std::ldexp(1.0, -exponent);
        const double best_factor = std::ldexp(1.0, -std::ilogb(std::max(beam_[0].best(), TINY)));
        for (Paths& paths : beam_) {
            paths.total *= factor;
            paths.blank *= factor;
            paths.label *= factor;
            paths.best_blank *= best_factor;
            paths.best_label *= best_factor;
        }
        log_scale_ += exponent * LN_2;
        if (nodes_.size() > full_nodes_ || cells_.size() > full_cells_) sweep();
    }
    ++frame_;
}

void Search::rank_symbols(const double* probabilities) {
    scratch_->ranked.clear();
    for (size_t symbol = 1; symbol < labels_.size(); ++symbol)
        if (probabilities[symbol] > 0 && static_cast<int32_t>(symbol) != space_)
            scratch_->ranked.emplace_back(probabilities[symbol], static_cast<int32_t>(symbol));
    std::sort(scratch_->ranked.begin(), scratch_->ranked.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
}

// Every prefix can stay what it is: by a blank, by its last symbol going on, and by its parent growing into it.
void Search::stay(const double* probabilities) {
    const size_t words = (labels_.size() + 63) / 64;
    const double blank = probabilities[BLANK];
    scratch_->taken.assign(beam_.size() * words, 0);
    scratch_->stays.resize(beam_.size());
    double lowest = std::numeric_limits<double>::infinity(), highest = 0;
    for (size_t slot = 0; slot < beam_.size(); ++slot) {
        const Paths& from = beam_[slot];
        const Node& node = nodes_[from.node];
        Paths& to = scratch_->stays[slot];
        to = from;
        to.blank = from.total * blank;
        to.best_blank = from.best() * blank;
        to.blank_cell = from.cell();
        to.blank_end = from.end();
        if (node.symbol == space_) {  // one more space is no other text, whatever stands between the two
            const double again = space_ == NOWHERE ? 0 : probabilities[space_];
            to.label = from.total * again;
            to.best_label = from.best() * again;
            to.label_cell = from.cell();
            to.label_end = from.end();
        } else {
            const double again = probabilities[node.symbol];
            to.label = from.label * again;
            to.best_label = from.best_label * again;
            to.label_end = frame_ + 1;
        }
        const int32_t above = node.parent < 0 ? -1 : nodes_[node.parent].slot;
        if (above >= 0) {
            scratch_->taken[above * words + node.symbol / 64] |= uint64_t{1} << (node.symbol % 64);
            const Paths& parent = beam_[above];
            const bool same = nodes_[parent.node].symbol == node.symbol;
            const double factor = probabilities[node.symbol] * node.gain;
            to.label += (same ? parent.blank : parent.total) * factor;
            const double best = (same ? parent.best_blank : parent.best()) * factor;
            if (best > to.best_label) {
                const int32_t cell = same ? parent.blank_cell : parent.cell();
                const int32_t end = same ? parent.blank_end : parent.end();
                to.best_label = best;
                to.label_cell = node.symbol == space_ ? cell : extended(cell, end);
                to.label_end = node.symbol == space_ ? end : frame_ + 1;
            }
        }
        to.total = to.blank + to.label;
        lowest = std::min(lowest, to.total);
        highest = std::max(highest, to.total);
    }
    // Below the floor no candidate can displace one of these, or is too far behind the best of them.
    const auto width = static_cast<size_t>(options_.beam_width);
    const double full = beam_.size() >= width ? lowest : 0;
    const double likeliest = scratch_->ranked.empty() ? 0 : beam_[0].total * scratch_->ranked[0].first;
    Shortlist& shortlist = scratch_->shortlist;
    shortlist.begin(width, std::max(highest * prune_, full), std::max(highest, likeliest));
    for (size_t slot = 0; slot < beam_.size(); ++slot)
        shortlist.add(scratch_->stays[slot].total, static_cast<int32_t>(slot), STAY);
}

// False where the lexicon forbids the letter, and where its unfinished word weighs so little that `reach`, the rank that
// it could have with a weight of 1, stays below `floor`: most letters, and before anything is asked of the hot words.
inline bool Search::letter(const Node& parent, int32_t symbol, double reach, double floor, Child& child) const {
    child = {NOWHERE, NOWHERE, 0, 1, letter_gain_};
    if (plain_letters_) return true;
    if (lexicon_) child.lexicon = lexicon_->child(parent.lexicon, symbol);
    if (weight(child.lexicon, parent.hot_lexicon) * reach < floor) return false;
    if (parent.hot_lexicon != NOWHERE) child.hot_lexicon = hot_words_->words().child(parent.hot_lexicon, symbol);
    if (options_.lexicon && child.lexicon == NOWHERE && child.hot_lexicon == NOWHERE) return false;
    child.weight = weight(child.lexicon, child.hot_lexicon);
    if (parent.hot != 0) {  // else no phrase is being spelled, and none begins within a word
        child.hot = hot_words_->step(parent.hot, symbol);
        child.weight *= hot_words_->weight(child.hot);
    }
    child.gain = letter_gain_ * child.weight * parent.scale;
    if (spells_) {
        LanguageModel::State after;
        const double score = model_->score(records_[parent.context].state, model_->unit(symbol), after);
        child.gain *= std::exp(options_.alpha * score);
    }
    return true;
}

// An upper bound of the gain of a space, or of any letter besides `letter_gain_`. A letter never makes an unfinished word likelier; a space
// trades its weight for its score.
inline double Search::headroom(const Node& node, int32_t symbol) const {
    const double phrases = hot_words_ ? hot_words_->headroom(node.hot) : 1;
    if (symbol != space_ || !in_word(node)) return phrases;
    const double weight = weights_ ? node.scale * (hot_words_ ? hot_words_->weight(node.hot) : 1) : 1;
    return phrases * weight * space_headroom_;
}

void Search::extend(const double* probabilities) {
    const double space_probability = space_ == NOWHERE ? 0 : probabilities[space_];
    const size_t words = (labels_.size() + 63) / 64;
    Shortlist& shortlist = scratch_->shortlist;
    scratch_->completed.resize(beam_.size());
    scratch_->is_completed.assign(beam_.size(), 0);
    for (size_t slot = 0; slot < beam_.size(); ++slot) {
        const Paths& from = beam_[slot];
        const Node& node = nodes_[from.node];
        const uint64_t* taken = scratch_->taken.data() + slot * words;
        const auto is_taken = [&](int32_t symbol) { return (taken[symbol / 64] >> (symbol % 64)) & 1; };
        const double most = headroom(node, NOWHERE) * letter_gain_;
        const double most_unweighted = most * node.scale * (hot_words_ ? hot_words_->weight(node.hot) : 1);
        Child child;
        for (const auto& [probability, symbol] : scratch_->ranked) {
            if (from.total * probability * most < shortlist.floor()) break;
            if (is_taken(symbol)) continue;
            const double sum = (symbol == node.symbol ? from.blank : from.total) * probability;
            if (!letter(node, symbol, sum * most_unweighted, shortlist.floor(), child)) continue;
            shortlist.add(sum * child.gain, static_cast<int32_t>(slot), symbol);
        }
        if (space_probability == 0 || node.symbol == space_ || is_taken(space_)) continue;
        const double sum = from.total * space_probability;
        if (sum * headroom(node, space_) >= shortlist.floor() && space(slot, child))
            shortlist.add(sum * child.gain, static_cast<int32_t>(slot), space_);
    }
}

// The beam of the candidates, and what was lost with the prefixes that left it.
void Search::rebuild(const std::vector<Candidate>& best, const double* probabilities) {
    scratch_->staying.assign(beam_.size(), 0);
    scratch_->fresh.clear();
    const double lowest = best[0].rank * prune_;
    for (const Candidate& candidate : best) {
        if (candidate.rank < lowest) continue;
        if (candidate.symbol == STAY) {
            scratch_->staying[candidate.slot] = 1;
            scratch_->fresh.push_back(scratch_->stays[candidate.slot]);
        } else {
            scratch_->fresh.push_back(grown(candidate, probabilities));
        }
    }
    account();
}

Search::Paths Search::grown(const Candidate& candidate, const double* probabilities) {
    const auto slot = static_cast<size_t>(candidate.slot);
    const Paths& from = beam_[slot];
    const int32_t symbol = candidate.symbol;
    int32_t node = find(from.node, symbol);
    if (node == NOWHERE) {
        Child child;
        int32_t context = nodes_[from.node].context;
        if (symbol != space_) {
            letter(nodes_[from.node], symbol, 1, 0, child);
            if (spells_) context = add_record(spelled_on(context, symbol));
        } else {
            space(slot, child);
            if (!scratch_->is_completed[slot]) scratch_->completed[slot] = completed(from.node);
            context = add_record(scratch_->completed[slot]);
            child.gain = std::exp(records_[context].gain) * child.weight * nodes_[from.node].scale;  // not rounded
        }
        node = create(from.node, symbol, child, context);
    }
    enter(node);
    const bool same = nodes_[from.node].symbol == symbol;
    const double factor = probabilities[symbol] * nodes_[node].gain;
    const int32_t cell = same ? from.blank_cell : from.cell();
    const int32_t end = same ? from.blank_end : from.end();
    Paths to;
    to.node = node;
    to.total = to.label = (same ? from.blank : from.total) * factor;
    to.best_label = (same ? from.best_blank : from.best()) * factor;
    to.label_cell = symbol == space_ ? cell : extended(cell, end);
    to.label_end = symbol == space_ ? end : frame_ + 1;
    to.blank_cell = to.label_cell;  // no path yet, but the letters of one
    to.blank_end = to.label_end;
    return to;
}

// `scratch_->fresh` becomes the beam in place of `scratch_->stays`, of which those that are `scratch_->staying` are in it.
//
// A prefix that falls out of the beam takes its share of the probability from the texts that go on without it: the
// node where it branched off from those keeps that much less. That is what a confidence is later made of.
void Search::account() {
    double mass = 0;
    for (size_t slot = 0; slot < scratch_->stays.size(); ++slot) {
        if (scratch_->staying[slot]) continue;
        mass += scratch_->stays[slot].total;
        nodes_[scratch_->stays[slot].node].slot = -1;
        leave(scratch_->stays[slot].node);
    }
    for (size_t slot = 0; slot < scratch_->fresh.size(); ++slot) {
        mass += scratch_->fresh[slot].total;
        nodes_[scratch_->fresh[slot].node].slot = static_cast<int32_t>(slot);
    }
    for (size_t slot = 0; slot < scratch_->stays.size(); ++slot) {
        if (scratch_->staying[slot]) continue;
        int32_t node = scratch_->stays[slot].node;
        if (nodes_[node].live) continue;  // longer texts go on from it: they agree with it
        while (!nodes_[node].live) node = nodes_[node].parent;
        nodes_[node].kept *= static_cast<float>(1 - scratch_->stays[slot].total / mass);
    }
    beam_.assign(scratch_->fresh.begin(), scratch_->fresh.end());
}

}  // namespace earsight
