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
#include "gates.hpp"
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

// bfloat16 comes as the 16-bit integers of its bits, because Python's buffers know no such type.
template <typename Number>
struct Stored {
    using Type = Number;
};
template <>
struct Stored<Brief> {
    using Type = int16_t;
};
template <typename Number>
using Numbers = Tensor<const typename Stored<Number>::Type, 4>;
template <typename Number>
using Results = Tensor<typename Stored<Number>::Type, 4>;

template <typename Array>
bool same_shape(const Array& array, size_t window, const GatesShape& shape, size_t width) {
    return array.shape(0) == window && array.shape(1) == shape.chunks && array.shape(2) == shape.batch &&
           array.shape(3) == width;
}

// Sizes from the products and the states, which have to agree.
template <typename Number>
GatesShape gates_shape(const Numbers<Number>& products, const Tensor<const float, 3>& heard,
                       const Tensor<const float, 2>& start, size_t right, bool more, size_t threads,
                       const Tensor<const float, 4>& ahead, const Tensor<const float, 4>& behind) {
    const GatesShape shape{products.shape(0), products.shape(1), products.shape(2), products.shape(3) / 5, right, more,
                           threads};
    if (right >= shape.window || products.shape(3) % 5 || start.shape(0) != shape.batch ||
        start.shape(1) != shape.width || heard.shape(0) != shape.window || heard.shape(1) != shape.chunks ||
        heard.shape(2) != shape.batch)
        throw std::invalid_argument("a gated scan takes (window, chunks, batch, 5 width), (window, chunks, batch), "
                                    "(batch, width) and a right context that is shorter than the window");
    if (!same_shape(ahead, shape.reach(), shape, shape.width) || !same_shape(behind, shape.window, shape, shape.width))
        throw std::invalid_argument("a gated scan's states have shapes that do not fit its products");
    return shape;
}

template <typename Number>
void gated_scan_arrays(const Numbers<Number>& products, const Tensor<const float, 3>& heard,
                       const Tensor<const float, 2>& start, size_t right, bool more, size_t threads,
                       const Tensor<float, 4>& ahead, const Tensor<float, 4>& behind, const Results<Number>& opened) {
    const GatesShape shape = gates_shape<Number>(products, heard, start, right, more, threads,
                                                 Tensor<const float, 4>(ahead), Tensor<const float, 4>(behind));
    if (!same_shape(opened, shape.reach(), shape, shape.width))
        throw std::invalid_argument("a gated scan's results have another shape than its states");
    const nb::gil_scoped_release release;
    gated_scan(shape, reinterpret_cast<const Number*>(products.data()), heard.data(), start.data(), ahead.data(),
               behind.data(), reinterpret_cast<Number*>(opened.data()));
}

template <typename Number>
void gated_scan_backward_arrays(const Numbers<Number>& outer, const Tensor<const float, 2>& last,
                                const Numbers<Number>& products, const Tensor<const float, 3>& heard,
                                const Tensor<const float, 2>& start, size_t right, bool more, size_t threads,
                                const Tensor<const float, 4>& ahead, const Tensor<const float, 4>& behind,
                                const Results<Number>& inner, const Tensor<float, 2>& start_gradient) {
    const GatesShape shape = gates_shape<Number>(products, heard, start, right, more, threads, ahead, behind);
    if (!same_shape(outer, shape.reach(), shape, shape.width) || !same_shape(inner, shape.window, shape, 5 * shape.width) ||
        last.shape(0) != shape.batch || last.shape(1) != shape.width || start_gradient.shape(0) != shape.batch ||
        start_gradient.shape(1) != shape.width)
        throw std::invalid_argument("a gated scan's gradients have other shapes than its arrays");
    const nb::gil_scoped_release release;
    gated_scan_backward(shape, reinterpret_cast<const Number*>(outer.data()), last.data(),
                        reinterpret_cast<const Number*>(products.data()), heard.data(), start.data(), ahead.data(),
                        behind.data(), reinterpret_cast<Number*>(inner.data()), start_gradient.data());
}

template <typename Number>
void bind_gates(nb::module_& module) {
    module.def("gated_scan", &gated_scan_arrays<Number>, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
               nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert());
    module.def("gated_scan_backward", &gated_scan_backward_arrays<Number>, nb::arg().noconvert(), nb::arg(),
               nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().noconvert(),
               nb::arg().noconvert(), nb::arg().noconvert(), nb::arg().noconvert());
}

}  // namespace

NB_MODULE(core, module) {
    nb::set_leak_warnings(false);  // objects that live until the interpreter ends are not the user's concern
    nb::class_<Options>(module, "Options")
        .def(nb::init<>())
        .def_rw("beam_width", &Options::beam_width)
        .def_rw("alpha", &Options::alpha)
        .def_rw("beta", &Options::beta)
        .def_rw("gamma", &Options::gamma)
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
    bind_gates<Brief>(module);
    bind_gates<float>(module);
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
