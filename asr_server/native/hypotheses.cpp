// What a search has found so far: texts with scores, times and confidences.

#include <cmath>
#include <unordered_map>

#include "search.hpp"

namespace earsight {

// `words` hold in their confidence the share that was not lost while they were in the beam.
struct Search::Ending {
    std::vector<Word> words;
    double weight = 0;  // ln of its share, up to a constant
    double score = 0, acoustic_score = 0, lm_score = 0, word_score = 0, boost_score = 0;
    double kept = 1;

    std::string text() const {
        std::string text;
        for (const Word& word : words) {
            if (!text.empty()) text += ' ';
            text += word.text;
        }
        return text;
    }
};

Hypothesis Search::best() const {
    std::vector<Ending> endings;
    for (const Paths& paths : beam_) {
        const Node& node = nodes_[paths.node];
        endings.push_back(ending(paths.node, records_[node.context], acoustic(paths), paths));
        endings.back().weight = std::log(paths.total);
    }
    return hypotheses(std::move(endings), 1)[0];
}

std::vector<Hypothesis> Search::finish() const {
    struct Text {
        int32_t node;
        double log_sum;
        Paths paths;
        double log_best;
    };
    // A text with a space after it is the same text: the two add up, and the likelier path tells the times.
    std::vector<Text> texts;
    std::unordered_map<int32_t, size_t> places;
    for (const Paths& paths : beam_) {
        const Node& node = nodes_[paths.node];
        const int32_t text = !in_word(node) && node.parent >= 0 ? node.parent : paths.node;
        const double log_sum = acoustic(paths);
        const double log_best = std::log(paths.best()) - bonus(node);
        const auto [place, added] = places.try_emplace(text, texts.size());
        if (added) {
            texts.push_back({text, log_sum, paths, log_best});
            continue;
        }
        Text& same = texts[place->second];
        const double high = std::max(same.log_sum, log_sum), low = std::min(same.log_sum, log_sum);
        same.log_sum = high + std::log1p(std::exp(low - high));
        if (log_best > same.log_best) {
            same.paths = paths;
            same.log_best = log_best;
        }
    }
    const auto ends = [&](const Text& text) { return may_end(nodes_[text.node]); };
    const bool any = std::any_of(texts.begin(), texts.end(), ends);
    std::vector<Ending> endings;
    for (const Text& text : texts) {
        if (any && !ends(text)) continue;
        Record record = completed(text.node);
        if (spells_ && in_word(nodes_[text.node])) {  // </s> follows, not the space that `completed` counts on
            const Record& open = records_[nodes_[text.node].context];
            record.lm_score = open.lm_score;
            record.state = open.state;
        }
        if (model_) record.lm_score += model_->score_end(record.state);
        endings.push_back(ending(text.node, record, text.log_sum, text.paths));
        endings.back().weight = endings.back().score;
    }
    return hypotheses(std::move(endings), static_cast<size_t>(options_.n_best));
}

// The words that every prefix of the beam begins with, completed; they leave the search and cannot change any more.
std::vector<Word> Search::take_committed() {
    give_up_rivals();
    int32_t node = root_, last = root_;
    while (nodes_[node].slot < 0) {
        int32_t only = NOWHERE;
        bool parted = false;
        for (int32_t child = nodes_[node].first_child; child != NOWHERE; child = nodes_[child].next_sibling) {
            if (!nodes_[child].live) continue;
            parted = only != NOWHERE;
            if (parted) break;
            only = child;
        }
        if (parted) break;
        node = only;
        if (!in_word(nodes_[node])) last = node;
    }
    if (last == root_) return {};
    const Paths& best = beam_[0];
    std::vector<Word> words = words_of(best.node, best.cell(), best.end());
    size_t count = 0;
    for (int32_t above = last; above != root_; above = nodes_[above].parent) {
        count += !in_word(nodes_[above]);
        committed_depth_ += in_word(nodes_[above]);
        committed_kept_ *= nodes_[nodes_[above].parent].kept;
    }
    words.resize(count);
    root_ = last;
    nodes_[root_].parent = -1;
    return words;
}

// Keeps only what agrees with the leading text up to its last `horizon` words. What follows is worth the same to two
// texts that differ only so far back, so a rival that is behind stays behind; but an ambiguous word would hold both in
// the beam for ever.
void Search::give_up_rivals() {
    int32_t decided = beam_[0].node;
    for (int64_t words = 0; decided != NOWHERE; decided = nodes_[decided].parent)
        if (!in_word(nodes_[decided]) && words++ == options_.horizon) break;
    if (decided == NOWHERE) return;
    scratch_ = &scratch_of_thread_;
    scratch_->stays = beam_;
    scratch_->staying.assign(beam_.size(), 0);
    scratch_->fresh.clear();
    for (size_t slot = 0; slot < beam_.size(); ++slot) {
        int32_t node = beam_[slot].node;
        while (node > decided) node = nodes_[node].parent;  // parents stand before their children
        if (node != decided) continue;
        scratch_->staying[slot] = 1;
        scratch_->fresh.push_back(beam_[slot]);
    }
    account();
}

double Search::acoustic(const Paths& paths) const {
    return std::log(paths.total) + log_scale_ - bonus(nodes_[paths.node]);
}

std::string Search::spelled(int32_t node) const {
    std::vector<int32_t> symbols;
    for (; in_word(nodes_[node]); node = nodes_[node].parent) symbols.push_back(nodes_[node].symbol);
    std::string text;
    for (auto symbol = symbols.rbegin(); symbol != symbols.rend(); ++symbol) text += labels_[*symbol];
    return text;
}

// The words from the root to the node, timed by a path. A word keeps what its letters and the place before it kept.
std::vector<Word> Search::words_of(int32_t node, int32_t cell, int32_t end) const {
    std::vector<Word> words;
    bool open = false;
    for (; node != root_; node = nodes_[node].parent) {
        if (!in_word(nodes_[node])) {
            open = false;
            continue;
        }
        if (!open) words.push_back({spelled(node), {}, 1});
        open = true;
        words.back().letters.push_back({cells_[cell].start, end});
        words.back().confidence *= nodes_[node].kept;
        if (nodes_[node].parent == root_ || !in_word(nodes_[nodes_[node].parent]))
            words.back().confidence *= nodes_[nodes_[node].parent].kept;
        end = cells_[cell].before_end;
        cell = cells_[cell].before;
    }
    std::reverse(words.begin(), words.end());
    for (Word& word : words) std::reverse(word.letters.begin(), word.letters.end());
    return words;
}

Search::Ending Search::ending(int32_t node, const Record& record, double log_sum, const Paths& paths) const {
    Ending ending;
    ending.words = words_of(node, paths.cell(), paths.end());
    ending.acoustic_score = log_sum;
    ending.lm_score = record.lm_score;
    ending.word_score = options_.beta * record.count;
    ending.boost_score = record.boost;
    ending.score = log_sum + options_.alpha * record.lm_score + ending.word_score + record.boost;
    ending.kept = committed_kept_;
    for (int32_t above = node;; above = nodes_[above].parent) {
        ending.kept *= nodes_[above].kept;
        if (above == root_) break;
    }
    return ending;
}

// The best `count`, with confidences: how the probability divides among all of them.
std::vector<Hypothesis> Search::hypotheses(std::vector<Ending> endings, size_t count) const {
    std::stable_sort(endings.begin(), endings.end(),
                     [](const Ending& a, const Ending& b) { return a.weight > b.weight; });
    double total = 0;
    for (const Ending& ending : endings) total += std::exp(ending.weight - endings[0].weight);
    struct Heard {
        int64_t start, end;
        size_t index;
    };
    std::vector<double> shares;
    std::vector<std::string> texts;
    std::unordered_map<std::string, std::vector<Heard>> heard;
    for (size_t index = 0; index < endings.size(); ++index) {
        shares.push_back(std::exp(endings[index].weight - endings[0].weight) / total);
        texts.push_back(endings[index].text());
        for (const Word& word : endings[index].words)
            heard[word.text].push_back({word.letters.front().start, word.letters.back().end, index});
    }
    std::vector<Hypothesis> found;
    for (size_t index = 0; index < std::min(count, endings.size()); ++index) {
        Ending& ending = endings[index];
        const std::string& text = texts[index];
        double same = 0, agreeing = 0;
        for (size_t other = 0; other < endings.size(); ++other) {
            if (texts[other].compare(0, text.size(), text) != 0) continue;
            agreeing += shares[other];
            if (texts[other].size() == text.size()) same += shares[other];
        }
        for (Word& word : ending.words) {
            // The share of the candidates that have the word at an overlapping time, each counted once.
            double share = 0;
            size_t last = endings.size();
            for (const Heard& other : heard[word.text]) {
                const bool overlaps =
                    other.start < word.letters.back().end && word.letters.front().start < other.end;
                if (!overlaps || other.index == last) continue;
                last = other.index;
                share += shares[other.index];
            }
            word.confidence *= std::min(1.0, share);
        }
        found.push_back({std::move(ending.words), ending.score, ending.acoustic_score, ending.lm_score,
                         ending.word_score, ending.boost_score, ending.kept * std::min(1.0, same),
                         std::min(1.0, agreeing)});
    }
    return found;
}

}  // namespace earsight
