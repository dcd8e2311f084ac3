// A KenLM model with its word list; natural logarithms, as in asr_server/language_model.py. Immutable and shared.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lm/state.hh"
#include "lm/virtual_interface.hh"
#include "trie.hpp"

namespace earsight {

using Labels = std::vector<std::string>;  // UTF-8, one a symbol; "" is the blank

class LanguageModel {
  public:
    using State = lm::ngram::State;
    static constexpr uint32_t UNLISTED = UINT32_MAX;  // the number of a listed word that the model does not have

    // `words`: the word list, where there is one. `characters`: the model's units are symbols and "|" for the space.
    // Throws what KenLM throws for a file it cannot read.
    LanguageModel(const std::string& path, const std::vector<std::string>& words, const Labels& labels,
                  bool characters);
    ~LanguageModel();

    State begin() const;
    // ln P(word | in); `out` becomes the state after it.
    double score(const State& in, uint32_t word, State& out) const;
    double score_end(const State& in) const;
    // 0 for a word that is not in the model.
    uint32_t index(const std::string& word) const;

    bool characters() const { return characters_; }
    uint32_t unit(int32_t symbol) const { return units_[static_cast<size_t>(symbol)]; }
    const Trie* lexicon() const { return lexicon_.get(); }
    // The most that ln P of an unfinished word can come to, by its probability without context: of a word that begins
    // like a node of the lexicon, or of any other. `offset` is added for an unknown word.
    double bound(int32_t node, double offset) const {
        return node == NOWHERE ? unknown_ + offset : std::max(unknown_ + offset, lexicon_->best(node));
    }

    // exp(alpha * bound), but never so little that dividing by it leaves the range of a double.
    double weight(double alpha, int32_t node, double offset) const;
    // The weights of all nodes. Streams with the same settings share them, and the last ones asked for are kept.
    using Weights = std::shared_ptr<const std::vector<double>>;
    Weights weights(double alpha, double offset) const;

  private:
    std::unique_ptr<lm::base::Model> model_;
    bool characters_;
    std::vector<uint32_t> units_;  // of a character model, by symbol
    std::unique_ptr<Trie> lexicon_;
    double unknown_ = 0;  // ln P of an unknown word without context
    mutable std::mutex lock_;
    mutable std::map<std::pair<double, double>, std::weak_ptr<const std::vector<double>>> weights_;
    mutable Weights last_;
};

}  // namespace earsight
