#include "language_model.hpp"

#include <cmath>

#include "lm/config.hh"
#include "lm/model.hh"

namespace earsight {

namespace {

constexpr double LN_10 = 2.302585092994045684;
constexpr double LEAST_WEIGHT = -300;  // a logarithm

// The labels are single characters, so a UTF-8 lead byte begins each symbol. Empty when the alphabet lacks one.
Symbols encode(const std::string& word, const std::map<std::string, int32_t>& symbols) {
    Symbols encoded;
    for (size_t begin = 0; begin < word.size();) {
        size_t end = begin + 1;
        while (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xC0) == 0x80) ++end;
        const auto found = symbols.find(word.substr(begin, end - begin));
        if (found == symbols.end()) return {};
        encoded.push_back(found->second);
        begin = end;
    }
    return encoded;
}

}  // namespace

LanguageModel::LanguageModel(const std::string& path, const std::vector<std::string>& words, const Labels& labels,
                             bool characters)
    : characters_(characters) {
    lm::ngram::Config config;
    config.messages = nullptr;
    config.show_progress = false;
    config.load_method = util::LAZY;  // pages come when they are asked for and are shared between processes
    model_.reset(lm::ngram::LoadVirtual(path.c_str(), config));

    std::map<std::string, int32_t> symbols;
    for (size_t symbol = 1; symbol < labels.size(); ++symbol) {
        symbols.emplace(labels[symbol], static_cast<int32_t>(symbol));
        units_.resize(labels.size());
        units_[symbol] = index(labels[symbol] == " " ? "|" : labels[symbol]);
    }
    State alone, after;
    model_->NullContextWrite(&alone);
    unknown_ = score(alone, 0, after);
    if (words.empty()) return;
    std::vector<Trie::Entry> entries;
    for (const std::string& word : words) {
        Symbols encoded = encode(word, symbols);
        if (encoded.empty()) continue;
        const uint32_t number = index(word);
        const auto value = static_cast<float>(score(alone, number, after));
        entries.push_back({std::move(encoded), number ? number : UNLISTED, value});
    }
    lexicon_ = std::make_unique<Trie>(std::move(entries), labels.size());
}

LanguageModel::~LanguageModel() = default;

double LanguageModel::weight(double alpha, int32_t node, double offset) const {
    return std::exp(std::max(alpha * bound(node, offset), LEAST_WEIGHT));
}

LanguageModel::Weights LanguageModel::weights(double alpha, double offset) const {
    const std::lock_guard guard(lock_);
    for (auto entry = weights_.begin(); entry != weights_.end();)
        entry = entry->second.expired() ? weights_.erase(entry) : std::next(entry);
    auto& known = weights_[{alpha, offset}];
    if (Weights found = known.lock()) return last_ = found;
    auto made = std::make_shared<std::vector<double>>(lexicon_->size());
    for (size_t node = 0; node < made->size(); ++node)
        (*made)[node] = weight(alpha, static_cast<int32_t>(node), offset);
    known = made;
    return last_ = made;
}

LanguageModel::State LanguageModel::begin() const {
    State state;
    model_->BeginSentenceWrite(&state);
    return state;
}

double LanguageModel::score(const State& in, uint32_t word, State& out) const {
    return static_cast<double>(model_->BaseScore(&in, word, &out)) * LN_10;
}

double LanguageModel::score_end(const State& in) const {
    State after;
    return score(in, model_->BaseVocabulary().EndSentence(), after);
}

uint32_t LanguageModel::index(const std::string& word) const { return model_->BaseVocabulary().Index(word); }

}  // namespace earsight
