// Boosted phrases as an Aho-Corasick automaton over the text with a space on both sides (asr_server/hot_words.py).
//
// A phrase counts where it stands as whole words. While it is being spelled, the search credits the share of its boost
// that has been spelled, and takes it back when the text turns elsewhere.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "trie.hpp"

namespace earsight {

class HotWords {
  public:
    // `phrases` hold symbols of the alphabet, words separated by one `space`.
    HotWords(const std::vector<std::pair<Symbols, double>>& phrases, int32_t space, size_t symbols) : space_(space) {
        std::vector<Trie::Entry> words;
        states_.emplace_back();
        for (const auto& [phrase, boost] : phrases) {
            add(phrase, boost);
            for (auto begin = phrase.begin(); begin < phrase.end();) {
                const auto end = std::find(begin, phrase.end(), space);
                words.push_back({Symbols(begin, end), 1, 0});
                begin = end + (end < phrase.end());
            }
        }
        words_ = std::make_unique<Trie>(std::move(words), symbols);
        link();
    }

    int32_t begin() const { return step(0, space_); }

    int32_t step(int32_t state, int32_t symbol) const {
        for (;;) {
            const int32_t next = child(state, symbol);
            if (next != NOWHERE) return next;
            if (state == 0) return 0;
            state = states_[state].fallback;
        }
    }

    // What the phrases that end on entering the state are worth.
    double gained(int32_t state) const { return states_[state].gained; }
    // The credit for the phrase being spelled.
    double potential(int32_t state) const { return states_[state].potential; }
    // The two as factors: of entering the state, and of having the credit.
    double worth(int32_t state) const { return states_[state].worth; }
    double weight(int32_t state) const { return states_[state].weight; }
    // An upper bound of the factor by which one more symbol can raise the rank.
    double headroom(int32_t state) const { return states_[state].headroom; }
    // The words of all phrases.
    const Trie& words() const { return *words_; }

  private:
    struct State {
        int32_t fallback = 0;
        int32_t first = 0, count = 0;  // its place in edges_
        double gained = 0, potential = 0;
        double worth = 1, weight = 1, headroom = 1;
    };
    using Edge = std::pair<int32_t, int32_t>;  // symbol, state

    int32_t child(int32_t state, int32_t symbol) const {
        const Edge* begin = edges_.data() + states_[state].first;
        const Edge* end = begin + states_[state].count;
        const Edge* found = std::lower_bound(begin, end, Edge{symbol, 0});
        return found != end && found->first == symbol ? found->second : NOWHERE;
    }

    void add(const Symbols& phrase, double boost) {
        const double credit = std::max(boost, 0.0) / static_cast<double>(phrase.size() + 1);
        int32_t state = grow(0, space_);
        for (size_t spelled = 1; spelled <= phrase.size(); ++spelled) {
            state = grow(state, phrase[spelled - 1]);
            states_[state].potential = std::max(states_[state].potential, credit * static_cast<double>(spelled));
        }
        states_[grow(state, space_)].gained += boost;
    }

    int32_t grow(int32_t state, int32_t symbol) {
        const auto [place, grown] = growing_.try_emplace({state, symbol}, static_cast<int32_t>(states_.size()));
        if (grown) states_.emplace_back();
        return place->second;
    }

    // Lays out the edges, then, breadth first, what each state inherits from its longest proper suffix.
    void link() {
        for (const auto& [key, state] : growing_) {  // sorted by state and symbol
            State& from = states_[key.first];
            if (from.count++ == 0) from.first = static_cast<int32_t>(edges_.size());
            edges_.emplace_back(key.second, state);
        }
        growing_.clear();
        std::vector<int32_t> queue{0};
        for (size_t i = 0; i < queue.size(); ++i) {
            const State from = states_[queue[i]];
            for (int32_t edge = from.first; edge < from.first + from.count; ++edge) {
                const auto [symbol, state] = edges_[edge];
                states_[state].fallback = queue[i] == 0 ? 0 : step(from.fallback, symbol);
                states_[state].gained += states_[states_[state].fallback].gained;
                queue.push_back(state);
            }
        }
        // What a symbol can lead to from a state, whether a child has it or a suffix: credit and worth.
        std::vector<double> reach(states_.size(), 0.0);
        for (const int32_t index : queue) {
            State& state = states_[index];
            if (index) reach[index] = reach[state.fallback];
            for (int32_t edge = state.first; edge < state.first + state.count; ++edge) {
                const State& next = states_[edges_[edge].second];
                reach[index] = std::max(reach[index], next.gained + next.potential);
            }
            state.worth = std::exp(state.gained);
            state.weight = std::exp(state.potential);
            state.headroom = std::exp(std::max(0.0, reach[index] - state.potential));
        }
    }

    int32_t space_;
    std::vector<State> states_;
    std::vector<Edge> edges_;
    std::map<std::pair<int32_t, int32_t>, int32_t> growing_;
    std::unique_ptr<Trie> words_;
};

}  // namespace earsight
