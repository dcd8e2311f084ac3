// Boosted phrases as an Aho-Corasick automaton over the text with a space on both sides (asr_server/hot_words.py).
//
// A phrase counts where it stands as whole words. While it is being spelled, the search credits the share of its boost
// that has been spelled, and takes it back when the text turns elsewhere.
#pragma once

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "trie.hpp"

namespace earsight {

class HotWords {
  public:
    // `phrases` hold symbols of the alphabet, words separated by one `space`.
    HotWords(const std::vector<std::pair<Symbols, double>>& phrases, int32_t space, size_t symbols) : space_(space) {
        std::vector<Trie::Entry> padded, words;
        for (const auto& [phrase, boost] : phrases) {
            padded.push_back({{space}, 1, 0});
            padded.back().symbols.insert(padded.back().symbols.end(), phrase.begin(), phrase.end());
            padded.back().symbols.push_back(space);
            for (auto begin = phrase.begin(); begin < phrase.end();) {
                const auto end = std::find(begin, phrase.end(), space);
                if (boost > 0) words.push_back({Symbols(begin, end), 1, 0});
                begin = end + (end < phrase.end());
            }
        }
        tree_ = std::make_unique<Trie>(std::move(padded), symbols);
        words_ = std::make_unique<Trie>(std::move(words), symbols);
        states_.resize(tree_->size());
        for (const auto& [phrase, boost] : phrases) add(phrase, boost);
        link(symbols);
    }

    int32_t begin() const { return step(0, space_); }

    int32_t step(int32_t state, int32_t symbol) const {
        for (;;) {
            const int32_t next = tree_->child(state, symbol);
            if (next != NOWHERE) return next;
            if (state == 0) return 0;
            state = states_[state].fallback;
        }
    }

    // What the phrases that end on entering the state are worth.
    double gained(int32_t state) const { return states_[state].gained; }
    // The credit for the phrase being spelled.
    double potential(int32_t state) const { return states_[state].potential; }
    // The credit as a factor.
    double weight(int32_t state) const { return states_[state].weight; }
    // An upper bound of the factor by which one more symbol can raise the rank.
    double headroom(int32_t state) const { return states_[state].headroom; }
    // The words of the phrases that are to be found.
    const Trie& words() const { return *words_; }

  private:
    static constexpr double MOST = 200;  // a logarithm; the ranks have to stay in the range of a double

    struct State {
        int32_t fallback = 0;  // the longest proper suffix that is a state
        double gained = 0, potential = 0;
        double weight = 1, headroom = 1;
    };

    void add(const Symbols& phrase, double boost) {
        const double credit = std::max(boost, 0.0) / static_cast<double>(phrase.size() + 1);
        int32_t state = tree_->child(0, space_);
        for (size_t spelled = 1; spelled <= phrase.size(); ++spelled) {
            state = tree_->child(state, phrase[spelled - 1]);
            states_[state].potential = std::max(states_[state].potential, credit * static_cast<double>(spelled));
        }
        states_[tree_->child(state, space_)].gained += boost;
    }

    // What each state inherits from its longest proper suffix; parents, and so suffixes, stand before their children.
    void link(size_t symbols) {
        std::vector<double> reach(states_.size(), 0.0);  // the most that a symbol leads to: worth and credit together
        for (int32_t parent = 0; parent < static_cast<int32_t>(states_.size()); ++parent) {
            for (int32_t symbol = 0; symbol < static_cast<int32_t>(symbols); ++symbol) {
                const int32_t child = tree_->child(parent, symbol);
                if (child == NOWHERE) continue;
                State& state = states_[child];
                state.fallback = parent == 0 ? 0 : step(states_[parent].fallback, symbol);
                state.gained += states_[state.fallback].gained;
                state.potential = std::max(state.potential, states_[state.fallback].potential);
                if (std::abs(state.gained) > MOST)
                    throw std::invalid_argument("the boosts of phrases that end at one place add up to " +
                                                std::to_string(state.gained) + ": at most " +
                                                std::to_string(static_cast<int>(MOST)));
                reach[parent] = std::max(reach[parent], state.gained + state.potential);
            }
            State& state = states_[parent];
            reach[parent] = std::max(reach[parent], reach[state.fallback]);
            state.weight = std::exp(state.potential);
            state.headroom = std::exp(std::max(0.0, reach[parent] - state.potential));
        }
    }

    int32_t space_;
    std::unique_ptr<Trie> tree_;  // of the phrases with a space on both sides; its nodes are the states
    std::unique_ptr<Trie> words_;
    std::vector<State> states_;
};

}  // namespace earsight
