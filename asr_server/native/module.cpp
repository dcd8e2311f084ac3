// The Python module asr_server.native.core. Every call that works on frames runs without the interpreter lock.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <variant>

#include "bf16_recurrence.hpp"
#include "byte_matrix.hpp"
#include "scan.hpp"
#include "search.hpp"

namespace nb = nanobind;

namespace earsight {

namespace {

template <typename Real>
using Array = nb::ndarray<const Real, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr size_t PIECE = 512;  // frames

// Rows of a matrix that Python keeps alive for the length of the call.
struct Matrix {
    std::variant<const float*, const double*> rows;
    size_t frames;
};

template <typename Real>
Matrix matrix(const Array<Real>& array, size_t symbols) {
    if (array.shape(1) != symbols)
        throw std::invalid_argument("log probabilities have shape (" + std::to_string(array.shape(0)) + ", " +
                                    std::to_string(array.shape(1)) + "): (frames, " + std::to_string(symbols) +
                                    ") fits the alphabet");
    return {array.data(), array.shape(0)};
}

Matrix matrix(nb::handle array, size_t symbols) {
    if (Array<float> single; nb::try_cast(array, single, false)) return matrix<float>(single, symbols);
    return matrix<double>(nb::cast<Array<double>>(array), symbols);
}

void advance(Search& search, const Matrix& matrix) {
    std::visit([&](const auto* rows) { search.advance(rows, matrix.frames); }, matrix.rows);
}

// A whole utterance, whose words are committed on the way: time and memory then grow with its length, not faster.
std::vector<Hypothesis> decode(Search& search, const Matrix& matrix) {
    std::vector<Word> committed;
    for (size_t from = 0; from < matrix.frames; from += PIECE) {
        const size_t frames = std::min(PIECE, matrix.frames - from);
        std::visit([&](const auto* rows) { search.advance(rows + from * search.symbols(), frames, from); }, matrix.rows);
        if (from + frames == matrix.frames) break;
        for (Word& word : search.take_committed()) committed.push_back(std::move(word));
    }
    std::vector<Hypothesis> found = search.finish();
    for (Hypothesis& hypothesis : found)
        hypothesis.words.insert(hypothesis.words.begin(), committed.begin(), committed.end());
    return found;
}

// A search as Python holds it. Threads that share one take turns: that is no use to them, but it must not crash.
struct Stream {
    Search search;
    std::mutex lock{};

    // use(search), alone and without the interpreter lock
    template <typename Use>
    auto alone(const Use& use) {
        const nb::gil_scoped_release release;
        const std::lock_guard guard(lock);
        return use(search);
    }
};

// task(i) for each i below `count`, in at most `threads` threads. The first error is thrown when all have ended.
template <typename Task>
void in_threads(size_t count, size_t threads, const Task& task) {
    std::atomic<size_t> next{0};
    std::exception_ptr error;
    std::mutex lock;
    const auto work = [&] {
        for (size_t i; (i = next++) < count;) {
            try {
                task(i);
            } catch (...) {
                const std::lock_guard guard(lock);
                if (!error) error = std::current_exception();
            }
        }
    };
    std::vector<std::thread> others;
    try {
        for (size_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: those that there are do the work
    }
    work();
    for (std::thread& other : others) other.join();
    if (error) std::rethrow_exception(error);
}

void advance_all(const std::vector<Stream*>& streams, const nb::list& arrays, size_t threads) {
    std::vector<Matrix> matrices;
    for (size_t i = 0; i < streams.size(); ++i) matrices.push_back(matrix(arrays[i], streams[i]->search.symbols()));
    const nb::gil_scoped_release release;
    in_threads(streams.size(), threads, [&](size_t i) {
        const std::lock_guard guard(streams[i]->lock);
        advance(streams[i]->search, matrices[i]);
    });
}

std::vector<std::vector<Hypothesis>> decode_all(const Options& options, const Labels& labels,
                                                const std::shared_ptr<LanguageModel>& model,
                                                const std::shared_ptr<HotWords>& hot_words, const nb::list& arrays,
                                                size_t threads) {
    std::vector<Matrix> matrices;
    for (const nb::handle array : arrays) matrices.push_back(matrix(array, labels.size()));
    std::vector<std::vector<Hypothesis>> found(matrices.size());
    const nb::gil_scoped_release release;
    in_threads(matrices.size(), threads, [&](size_t i) {
        Search search(options, labels, model, hot_words);
        found[i] = decode(search, matrices[i]);
    });
    return found;
}

template <typename Real, size_t DIMENSIONS>
using Tensor = nb::ndarray<Real, nb::ndim<DIMENSIONS>, nb::c_contig, nb::device::cpu>;

void fit(bool fits, const ByteMatrix& matrix) {
    if (!fits)
        throw std::invalid_argument("the arrays' shapes do not fit a matrix of " + std::to_string(matrix.outputs()) +
                                    " outputs and " + std::to_string(matrix.inputs()) + " inputs, or each other");
}

void multiply(const ByteMatrix& matrix, const Tensor<const float, 2>& rows, float low, float high,
              const Tensor<float, 2>& results) {
    fit(rows.shape(1) == matrix.inputs() && results.shape(1) == matrix.outputs() && rows.shape(0) == results.shape(0),
        matrix);
    const nb::gil_scoped_release release;
    matrix.multiply(rows.data(), rows.shape(0), low, high, results.data());
}

void recur(const ByteMatrix& matrix, const Tensor<const float, 3>& inputs, const Tensor<const float, 2>& initial,
           float clip, bool reverse, const Tensor<float, 3>& states) {
    const size_t frames = inputs.shape(0), batch = inputs.shape(1), width = matrix.outputs();
    fit(matrix.inputs() == width && inputs.shape(2) == width && initial.shape(0) == batch &&
            initial.shape(1) == width && states.shape(0) == frames && states.shape(1) == batch &&
            states.shape(2) == width,
        matrix);
    const nb::gil_scoped_release release;
    matrix.recur(inputs.data(), frames, batch, initial.data(), clip, reverse, states.data());
}

// Sizes from the arrays, which have to agree.
RecurrenceShape recurrence_shape(const Tensor<const float, 3>& rows, const Tensor<const float, 2>& weight,
                                 const Tensor<const float, 3>& others, float clip, bool reverse, size_t threads) {
    const RecurrenceShape shape{rows.shape(0), rows.shape(1), rows.shape(2), clip, reverse, threads};
    if (weight.shape(0) != shape.width || weight.shape(1) != shape.width || others.shape(0) != shape.frames ||
        others.shape(1) != shape.batch || others.shape(2) != shape.width)
        throw std::invalid_argument("a recurrence takes (frames, batch, width) twice and a weight (width, width)");
    return shape;
}

void bf16_recur_arrays(const Tensor<const float, 3>& inputs, const Tensor<const float, 2>& weight,
                       const Tensor<const float, 2>& initial, float clip, bool reverse, size_t threads,
                       const Tensor<float, 3>& states) {
    const RecurrenceShape shape = recurrence_shape(inputs, weight, Tensor<const float, 3>(states), clip, reverse, threads);
    if (initial.shape(0) != shape.batch || initial.shape(1) != shape.width)
        throw std::invalid_argument("the initial state's shape is not (batch, width)");
    const nb::gil_scoped_release release;
    bf16_recur(shape, inputs.data(), weight.data(), initial.data(), states.data());
}

void bf16_recur_backward_arrays(const Tensor<const float, 3>& outer, const Tensor<const float, 2>& weight,
                                const Tensor<const float, 3>& states, float clip, bool reverse, size_t threads,
                                const Tensor<float, 3>& inner) {
    const RecurrenceShape shape = recurrence_shape(outer, weight, states, clip, reverse, threads);
    recurrence_shape(outer, weight, Tensor<const float, 3>(inner), clip, reverse, threads);
    const nb::gil_scoped_release release;
    bf16_recur_backward(shape, outer.data(), weight.data(), states.data(), inner.data());
}

// (frames, batch, width) for all of them, (batch, width) for the states before the first frame.
ScanShape scan_shape(const std::vector<Tensor<const float, 3>>& arrays, const std::vector<Tensor<const float, 2>>& edges,
                     bool reverse, size_t threads) {
    const auto& first = arrays.front();
    for (const auto& array : arrays)
        for (size_t i = 0; i < 3; ++i)
            if (array.shape(i) != first.shape(i)) throw std::invalid_argument("a scan's arrays have different shapes");
    for (const auto& edge : edges)
        if (edge.shape(0) != first.shape(1) || edge.shape(1) != first.shape(2))
            throw std::invalid_argument("a scan's states before the first frame are (batch, width)");
    return {first.shape(0), first.shape(1) * first.shape(2), reverse, threads};
}

void scan_arrays(const Tensor<const float, 3>& inputs, const Tensor<const float, 3>& kept,
                 const Tensor<const float, 2>& initial, bool reverse, size_t threads, const Tensor<float, 3>& states) {
    const ScanShape shape = scan_shape({inputs, kept, Tensor<const float, 3>(states)}, {initial}, reverse, threads);
    const nb::gil_scoped_release release;
    scan(shape, inputs.data(), kept.data(), initial.data(), states.data());
}

void scan_backward_arrays(const Tensor<const float, 3>& outer, const Tensor<const float, 3>& kept,
                          const Tensor<const float, 2>& initial, const Tensor<const float, 3>& states, bool reverse,
                          size_t threads, const Tensor<float, 3>& inner, const Tensor<float, 3>& kept_gradient,
                          const Tensor<float, 2>& initial_gradient) {
    const ScanShape shape = scan_shape(
        {outer, kept, states, Tensor<const float, 3>(inner), Tensor<const float, 3>(kept_gradient)},
        {initial, Tensor<const float, 2>(initial_gradient)}, reverse, threads);
    const nb::gil_scoped_release release;
    scan_backward(shape, outer.data(), kept.data(), initial.data(), states.data(), inner.data(), kept_gradient.data(),
                  initial_gradient.data());
}

}  // namespace

NB_MODULE(core, module) {
    nb::class_<Options>(module, "Options")
        .def(nb::init<>())
        .def_rw("beam_width", &Options::beam_width)
        .def_rw("alpha", &Options::alpha)
        .def_rw("beta", &Options::beta)
        .def_rw("token_min_log_prob", &Options::token_min_log_prob)
        .def_rw("beam_prune_log_prob", &Options::beam_prune_log_prob)
        .def_rw("unknown_word_offset", &Options::unknown_word_offset)
        .def_rw("lexicon", &Options::lexicon)
        .def_rw("lookahead", &Options::lookahead)
        .def_rw("n_best", &Options::n_best)
        .def_rw("horizon", &Options::horizon);
    nb::class_<LanguageModel>(module, "LanguageModel")
        .def(nb::init<const std::string&, const std::vector<std::string>&, const Labels&, bool>(),
             nb::call_guard<nb::gil_scoped_release>())
        .def(
            "score",
            [](const LanguageModel& self, const std::vector<std::string>& words) {
                LanguageModel::State state = self.begin(), after;
                double total = 0;
                for (const std::string& word : words) {
                    total += self.score(state, self.index(word), after);
                    state = after;
                }
                return total;
            },
            nb::call_guard<nb::gil_scoped_release>());
    nb::class_<HotWords>(module, "HotWords")
        .def(nb::init<const std::vector<std::pair<Symbols, double>>&, int32_t, size_t>(),
             nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Span>(module, "Span").def_ro("start", &Span::start).def_ro("end", &Span::end);
    nb::class_<Word>(module, "Word")
        .def_ro("text", &Word::text)
        .def_prop_ro("letters",
                     [](const Word& word) {
                         std::vector<std::pair<int64_t, int64_t>> spans;
                         for (const Span& span : word.letters) spans.emplace_back(span.start, span.end);
                         return spans;
                     })
        .def_ro("confidence", &Word::confidence);
    nb::class_<Hypothesis>(module, "Hypothesis")
        .def_ro("words", &Hypothesis::words)
        .def_ro("score", &Hypothesis::score)
        .def_ro("acoustic_score", &Hypothesis::acoustic_score)
        .def_ro("lm_score", &Hypothesis::lm_score)
        .def_ro("word_score", &Hypothesis::word_score)
        .def_ro("boost_score", &Hypothesis::boost_score)
        .def_ro("confidence", &Hypothesis::confidence)
        .def_ro("stability", &Hypothesis::stability);
    nb::class_<Stream>(module, "Search")
        .def(
            "__init__",
            [](Stream* self, const Options& options, const Labels& labels, const std::shared_ptr<LanguageModel>& model,
               const std::shared_ptr<HotWords>& hot_words) {
                new (self) Stream{Search(options, labels, model, hot_words)};
            },
            nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none())
        .def("best", [](Stream& self) { return self.alone([](Search& search) { return search.best(); }); })
        .def("finish", [](Stream& self) { return self.alone([](Search& search) { return search.finish(); }); })
        .def("take_committed",
             [](Stream& self) { return self.alone([](Search& search) { return search.take_committed(); }); })
        .def("bytes", [](Stream& self) { return self.alone([](Search& search) { return search.bytes(); }); });
    nb::class_<ByteMatrix>(module, "ByteMatrix")
        .def_static("supported", &ByteMatrix::supported)
        .def(
            "__init__",
            [](ByteMatrix* self, const Tensor<const float, 2>& weight,
               const std::optional<Tensor<const float, 1>>& bias, bool signed_inputs) {
                if (bias && bias->shape(0) != weight.shape(0))
                    throw std::invalid_argument("a bias of " + std::to_string(bias->shape(0)) + " for " +
                                                std::to_string(weight.shape(0)) + " outputs");
                new (self) ByteMatrix(weight.data(), bias ? bias->data() : nullptr, weight.shape(0), weight.shape(1),
                                      signed_inputs);
            },
            nb::arg(), nb::arg().none(), nb::arg())
        .def("multiply", &multiply, nb::arg(), nb::arg(), nb::arg(), nb::arg().noconvert())
        .def("recur", &recur, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().noconvert());
    module.def("scan", &scan_arrays, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().noconvert());
    module.def("scan_backward", &scan_backward_arrays, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
               nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert());
    module.def("bf16_supported", &bf16_supported);
    module.def("bf16_recur", &bf16_recur_arrays, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
               nb::arg().noconvert());
    module.def("bf16_recur_backward", &bf16_recur_backward_arrays, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
               nb::arg(), nb::arg().noconvert());
    module.def("advance_all", &advance_all);
    module.def("decode_all", &decode_all, nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(),
               nb::arg());
}

}  // namespace earsight
