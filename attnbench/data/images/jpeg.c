/* Resized parts of JPEG images, with exactly the pixels that Pillow gives; see jpeg.py.

   The decoder is the library that Pillow uses (libjpeg-turbo, interface 6.2). It is loaded at run time, so neither a
   header nor a development package is needed. Only the columns and rows that the result depends on are transformed. The
   rows above them are only entropy-decoded, and the rows below are not read. Each row is resized when it is decoded, so
   that only a few rows are in memory.

   A result other than 0 means that the caller has to use Pillow: after the first warning, if the data end too early, or
   if the colour space is not grey, RGB or YCbCr. */

#include <dlfcn.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#endif

#define INLINE inline __attribute__((always_inline))

/* The public part of libjpeg's interface. The library compares the structure's size with its own. */

enum { INTERFACE = 62, GREY = 1, RGB = 2, YCBCR = 3, RGBX = 7, MESSAGE = 200 };

typedef struct Decoder Decoder;

typedef struct {
    void (*error_exit)(Decoder *);
    void (*emit_message)(Decoder *, int level);
    void (*output_message)(Decoder *);
    void (*format_message)(Decoder *, char *text);
    void (*reset)(Decoder *);
    int code;
    union {
        int numbers[8];
        char text[80];
    } parameters;
    int trace_level;
    long warnings;
    const char *const *texts;
    int last_text;
    const char *const *more_texts;
    int first_more, last_more;
} Messages;

typedef struct {
    const uint8_t *next;
    size_t left;
    void (*begin)(Decoder *);
    int (*fill)(Decoder *);
    void (*skip)(Decoder *, long count);
    int (*resync)(Decoder *, int wanted);
    void (*end)(Decoder *);
} Source;

struct Decoder {
    Messages *messages;
    void *memory, *progress, *client_data;
    int is_decompressor, state;
    Source *source;
    unsigned width, height;
    int channels, colour_space, out_colour_space;
    unsigned scale_numerator, scale_denominator;
    double gamma;
    int buffered, raw_data, dct_method, fancy_upsampling, block_smoothing;
    int quantize, dither_mode, two_pass_quantize, colours_wanted;
    int one_pass_quantizer, external_quantizer, two_pass_quantizer;
    unsigned out_width, out_height;
    int out_colour_channels, out_channels, best_rows, colours;
    void *colour_map;
    unsigned out_row;
    int input_scan;
    unsigned input_mcu_row;
    int output_scan;
    unsigned output_mcu_row;
    void *coefficient_bits, *quantization[4], *dc_huffman[4], *ac_huffman[4];
    int precision;
    void *components;
    int progressive, arithmetic;
    uint8_t arithmetic_dc_low[16], arithmetic_dc_high[16], arithmetic_ac[16];
    unsigned restart_interval;
    int has_jfif;
    uint8_t jfif_major, jfif_minor, density_unit;
    uint16_t density_x, density_y;
    int has_adobe;
    uint8_t adobe_transform;
    int ccir601;
    void *markers;
    int most_across, most_down, smallest_block;
    unsigned mcu_rows;
    void *range_limit;
    int components_in_scan;
    void *scan_components[4];
    unsigned mcus_a_row, mcu_rows_in_scan;
    int blocks_in_mcu, mcu_membership[10], spectral_start, spectral_end, approximation_high, approximation_low;
    int unread_marker;
    void *modules[11];
};

static struct {
    Messages *(*standard_messages)(Messages *);
    void (*create)(Decoder *, int interface, size_t size);
    int (*read_header)(Decoder *, int image_required);
    int (*start)(Decoder *);
    void (*crop)(Decoder *, unsigned *left, unsigned *width);
    unsigned (*skip)(Decoder *, unsigned rows);
    unsigned (*read)(Decoder *, uint8_t **rows, unsigned count);
    int (*finish)(Decoder *);
    void (*destroy)(Decoder *);
    int (*resync)(Decoder *, int wanted);
} library;

/* The state of one image. It is on the heap, so that its values survive a longjmp. */
typedef struct {
    Decoder decoder;
    Messages messages;
    Source source;
    jmp_buf failed;
    char *text;
    void *scratch;
} Job;

static void fail(Decoder *decoder) {
    Job *job = (Job *)decoder;
    if (job->text) decoder->messages->format_message(decoder, job->text);
    longjmp(job->failed, 1);
}

static void fail_if_warning(Decoder *decoder, int level) {
    if (level < 0) fail(decoder);
}

static void nothing(Decoder *decoder) { (void)decoder; }

static int end_of_data(Decoder *decoder) {
    if (((Job *)decoder)->text) strcpy(((Job *)decoder)->text, "the file ends too early");
    longjmp(((Job *)decoder)->failed, 1);
}

static void skip_data(Decoder *decoder, long count) {
    if (count <= 0) return;
    if ((size_t)count > decoder->source->left) end_of_data(decoder);
    decoder->source->next += count;
    decoder->source->left -= count;
}

static Job *new_job(char *text) {
    Job *job = calloc(1, sizeof *job);
    if (job) job->text = text;
    return job;
}

static int end(Job *job, int result) {
    if (job->decoder.memory) library.destroy(&job->decoder);
    free(job->scratch);
    free(job);
    return result;
}

static void create(Job *job) {
    job->decoder.messages = library.standard_messages(&job->messages);
    job->messages.error_exit = fail;
    job->messages.emit_message = fail_if_warning;
    job->messages.output_message = nothing;
    library.create(&job->decoder, INTERFACE, sizeof job->decoder);
}

/* Read the header. Returns whether the image is of a kind that is decoded here. */
static int begin(Job *job, const uint8_t *data, size_t size) {
    Decoder *decoder = &job->decoder;
    /* A truncated file has no end marker. It is checked here, because rows below the part are never read. */
    if (size < 4 || data[size - 2] != 0xff || data[size - 1] != 0xd9) return 0;
    create(job);
    job->source = (Source){data, size, nothing, end_of_data, skip_data, library.resync, nothing};
    decoder->source = &job->source;
    library.read_header(decoder, 1);
    if (decoder->precision != 8) return 0;
    if (decoder->channels == 1) return decoder->colour_space == GREY;
    return decoder->channels == 3 && (decoder->colour_space == RGB || decoder->colour_space == YCBCR);
}

/* Write the width and height of an image to shape. Returns 0 if the image can be drawn here. */
int measure(const uint8_t *data, size_t size, int32_t shape[2]) {
    Job *const job = new_job(NULL);
    if (!job) return 1;
    if (setjmp(job->failed)) return end(job, 1);
    if (!begin(job, data, size)) return end(job, 1);
    shape[0] = (int32_t)job->decoder.width;
    shape[1] = (int32_t)job->decoder.height;
    return end(job, 0);
}

/* Decode all of an image. Returns 0 without a warning or error; otherwise, text holds the library's message. */
int inspect(const uint8_t *data, size_t size, char text[MESSAGE]) {
    Job *const job = new_job(text);
    text[0] = 0;
    if (!job) return 1;
    if (setjmp(job->failed)) return end(job, 1);
    if (!begin(job, data, size)) return end(job, 1);
    Decoder *decoder = &job->decoder;
    uint8_t *row = job->scratch = malloc(4 * (size_t)decoder->width);
    if (!row) return end(job, 1);
    decoder->out_colour_space = RGBX;
    library.start(decoder);
    while (decoder->out_row < decoder->height) library.read(decoder, &row, 1);
    library.finish(decoder);
    return end(job, 0);
}

/* Pillow's bilinear resizing in integers: weights have 22 fractional bits, and each direction's result is rounded. */

enum { BITS = 22, HALF = 1 << (BITS - 1), BLOCK = 32, EDGE = 8 };

typedef struct {
    int first, count; /* the input pixels that an output pixel depends on */
} Span;

/* The maximum number of input pixels per output pixel, rounded up to an even number. */
static int most(int from, int to) {
    double scale = (double)from / to;
    int support = (int)scale;
    if (support < scale) support++;
    return 2 * (support < 1 ? 1 : support) + 2;
}

/* The spans and weights of `count` output pixels from `start` on. Each has `stride` weights, padded with zeros. */
static void weigh(int from, int to, int start, int count, int stride, Span *spans, int32_t *weights, double *real) {
    double scale = (double)from / to, support = scale < 1 ? 1 : scale, inverse = 1 / support;
    memset(weights, 0, sizeof *weights * (size_t)count * stride);
    for (int i = 0; i < count; i++) {
        double centre = (start + i + 0.5) * scale, sum = 0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (last > from) last = from;
        spans[i] = (Span){first, last - first};
        for (int k = 0; k < last - first; k++) {
            double distance = (k + first - centre + 0.5) * inverse;
            if (distance < 0) distance = -distance;
            real[k] = distance < 1 ? 1 - distance : 0;
            sum += real[k];
        }
        for (int k = 0; k < last - first; k++)
            weights[(size_t)i * stride + k] = (int)(0.5 + real[k] / sum * (1 << BITS));
    }
}

/* Reverse the order of the output pixels of a row. */
static void reverse(Span *spans, int32_t *weights, int count, int stride) {
    for (int i = 0, j = count - 1; i < j; i++, j--) {
        Span span = spans[i];
        spans[i] = spans[j];
        spans[j] = span;
        for (int k = 0; k < stride; k++) {
            int32_t weight = weights[(size_t)i * stride + k];
            weights[(size_t)i * stride + k] = weights[(size_t)j * stride + k];
            weights[(size_t)j * stride + k] = weight;
        }
    }
}

/* Repeat each weight four times, once per channel. */
static void spread(const int32_t *weights, size_t count, int32_t *out) {
    for (size_t i = 0; i < count; i++)
        for (int channel = 0; channel < 4; channel++) out[4 * i + channel] = weights[i];
}

/* Resize a row of RGBX pixels to `count` RGB pixels. May write one byte beyond them. */
static void across_plain(const uint8_t *row, const Span *spans, const int32_t *weights, int pairs, int count,
                         uint8_t *out) {
    for (int i = 0; i < count; i++) {
        const uint8_t *pixels = row + 4 * (size_t)spans[i].first;
        int32_t red = HALF, green = HALF, blue = HALF;
        for (int k = 0; k < 2 * pairs; k++) {
            int32_t weight = weights[4 * (2 * (size_t)i * pairs + k)];
            red += pixels[4 * k] * weight;
            green += pixels[4 * k + 1] * weight;
            blue += pixels[4 * k + 2] * weight;
        }
        out[3 * i] = (uint8_t)(red >> BITS);
        out[3 * i + 1] = (uint8_t)(green >> BITS);
        out[3 * i + 2] = (uint8_t)(blue >> BITS);
    }
}

/* The weighted sum of rows of `size` bytes, a multiple of BLOCK. */
static INLINE void sum_rows(uint8_t *const *rows, const int32_t *weights, int count, size_t size, uint8_t *out) {
    for (size_t at = 0; at < size; at += BLOCK) {
        int32_t sums[BLOCK];
        for (int i = 0; i < BLOCK; i++) sums[i] = HALF;
        for (int k = 0; k < count; k++)
            for (int i = 0; i < BLOCK; i++) sums[i] += rows[k][at + i] * weights[k];
        for (int i = 0; i < BLOCK; i++) out[at + i] = (uint8_t)(sums[i] >> BITS);
    }
}

static void down_plain(uint8_t *const *rows, const int32_t *weights, int count, size_t size, uint8_t *out) {
    sum_rows(rows, weights, count, size, out);
}

static void (*across)(const uint8_t *, const Span *, const int32_t *, int, int, uint8_t *) = across_plain;
static void (*down)(uint8_t *const *, const int32_t *, int, size_t, uint8_t *) = down_plain;

#ifdef __x86_64__

static AVX2 INLINE void across_pairs(const uint8_t *row, const Span *spans, const int32_t *weights, int pairs,
                                     int count, uint8_t *out) {
    const __m256i half = _mm256_setr_epi32(HALF, HALF, HALF, HALF, 0, 0, 0, 0);
    const __m128i bytes = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    for (int i = 0; i < count; i++) {
        const uint8_t *pixels = row + 4 * (size_t)spans[i].first;
        const int32_t *factors = weights + 8 * (size_t)i * pairs;
        __m256i sum = half;
        for (int k = 0; k < pairs; k++) {
            __m256i two = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(pixels + 8 * k)));
            __m256i by = _mm256_loadu_si256((const __m256i *)(factors + 8 * k));
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(two, by));
        }
        __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        int32_t pixel = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm_srai_epi32(both, BITS), bytes));
        memcpy(out + 3 * (size_t)i, &pixel, sizeof pixel);
    }
}

static AVX2 void across_avx2(const uint8_t *row, const Span *spans, const int32_t *weights, int pairs, int count,
                             uint8_t *out) {
    switch (pairs) { /* with a constant count, the loop has no branch to mispredict */
        case 2: across_pairs(row, spans, weights, 2, count, out); break;
        case 3: across_pairs(row, spans, weights, 3, count, out); break;
        case 4: across_pairs(row, spans, weights, 4, count, out); break;
        default: across_pairs(row, spans, weights, pairs, count, out);
    }
}

static AVX2 void down_avx2(uint8_t *const *rows, const int32_t *weights, int count, size_t size, uint8_t *out) {
    sum_rows(rows, weights, count, size, out);
}

static void choose_instructions(void) {
    if (!__builtin_cpu_supports("avx2")) return;
    across = across_avx2;
    down = down_avx2;
}

#else

static void choose_instructions(void) {}

#endif

typedef struct {
    int32_t left, top, width, height;   /* the part of the image that is resized, in pixels */
    int32_t to_width, to_height;        /* the size that it is resized to */
    int32_t from_left, from_top, side;  /* the square to cut out of the resized part */
    int32_t mirrored;                   /* left to right */
    int32_t down_first;                 /* resize vertically before horizontally: the rounding differs */
} View;

static size_t blocks(size_t size) { return (size + BLOCK - 1) / BLOCK * BLOCK; }

/* Take `size` bytes, aligned for every type, from `base`. If `base` is NULL, only count them. */
static void *cut(uint8_t *base, size_t *used, size_t size) {
    void *piece = base ? base + *used : NULL;
    *used += blocks(size);
    return piece;
}

typedef struct {
    Span *columns, *rows;
    int32_t *column_weights, *row_weights, *spread_weights;
    double *real;
    uint8_t *input, *line, *ring, **window;
} Scratch;

static size_t divide(uint8_t *base, const View *view, int wide, int high, size_t slot, size_t row, Scratch *scratch) {
    size_t used = 0, side = (size_t)view->side;
    scratch->columns = cut(base, &used, side * sizeof(Span));
    scratch->rows = cut(base, &used, side * sizeof(Span));
    scratch->column_weights = cut(base, &used, side * wide * sizeof(int32_t));
    scratch->row_weights = cut(base, &used, side * high * sizeof(int32_t));
    scratch->spread_weights = cut(base, &used, 4 * side * wide * sizeof(int32_t));
    scratch->real = cut(base, &used, (wide > high ? wide : high) * sizeof(double));
    scratch->window = cut(base, &used, high * sizeof(uint8_t *));
    scratch->input = cut(base, &used, row);
    scratch->line = cut(base, &used, blocks(3 * side + 1));
    scratch->ring = cut(base, &used, slot * high);
    return used;
}

/* Draw a view of an image as (side, side, 3) bytes. Returns 0 if all of it was drawn. */
int draw(const uint8_t *data, size_t size, const View *view, uint8_t *out) {
    Job *const job = new_job(NULL);
    if (!job) return 1;
    if (setjmp(job->failed)) return end(job, 1);
    if (!begin(job, data, size)) return end(job, 1);
    Decoder *decoder = &job->decoder;
    int side = view->side, wide = most(view->width, view->to_width), high = most(view->height, view->to_height);
    size_t row_size = blocks(4 * ((size_t)decoder->width + wide));
    size_t slot = view->down_first ? row_size : blocks(3 * (size_t)side + 1);
    Scratch scratch;
    job->scratch = malloc(divide(NULL, view, wide, high, slot, row_size, &scratch));
    if (!job->scratch) return end(job, 1);
    divide(job->scratch, view, wide, high, slot, row_size, &scratch);
    Span *columns = scratch.columns, *rows = scratch.rows;
    weigh(view->width, view->to_width, view->from_left, side, wide, columns, scratch.column_weights, scratch.real);
    weigh(view->height, view->to_height, view->from_top, side, high, rows, scratch.row_weights, scratch.real);

    /* Upsampled colours depend on neighbours. Decode a few more columns, so that the region's edges are not used. */
    int first = view->left + columns[0].first, last = view->left + columns[side - 1].first + columns[side - 1].count;
    unsigned left = first > EDGE ? first - EDGE : 0, right = last + EDGE, width;
    if (right > decoder->width) right = decoder->width;
    width = right - left;
    decoder->out_colour_space = RGBX;
    library.start(decoder);
    if (width < decoder->width) library.crop(decoder, &left, &width); /* moves `left` to the edge of a block */
    for (int i = 0; i < side; i++) columns[i].first += view->left - (int)left;
    if (view->mirrored) reverse(columns, scratch.column_weights, side, wide);
    spread(scratch.column_weights, (size_t)side * wide, scratch.spread_weights);

    size_t used = view->down_first ? blocks(4 * (size_t)decoder->out_width) : slot;
    int top = view->top + rows[0].first, bottom = view->top + rows[side - 1].first + rows[side - 1].count;
    if (top > 0 && library.skip(decoder, top) != (unsigned)top) return end(job, 1);
    for (int y = top, next = 0; y < bottom; y++) {
        uint8_t *place = scratch.ring + slot * ((y - view->top) % high);
        uint8_t *into = view->down_first ? place : scratch.input;
        if (library.read(decoder, &into, 1) != 1) return end(job, 1);
        if (!view->down_first) across(into, columns, scratch.spread_weights, wide / 2, side, place);
        for (; next < side && view->top + rows[next].first + rows[next].count <= y + 1; next++) {
            for (int k = 0; k < rows[next].count; k++)
                scratch.window[k] = scratch.ring + slot * ((rows[next].first + k) % high);
            const int32_t *weights = scratch.row_weights + (size_t)next * high;
            uint8_t *target = view->down_first ? scratch.input : scratch.line;
            down(scratch.window, weights, rows[next].count, used, target);
            if (view->down_first) across(target, columns, scratch.spread_weights, wide / 2, side, scratch.line);
            memcpy(out + 3 * (size_t)side * next, scratch.line, 3 * (size_t)side);
        }
    }
    return end(job, 0);
}

/* Load the decoder from a library; call this first. Returns 0 if the library has this interface. */
int attach(const char *path) {
    choose_instructions();
    void *file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!file) return 1;
    library.standard_messages = dlsym(file, "jpeg_std_error");
    library.create = dlsym(file, "jpeg_CreateDecompress");
    library.read_header = dlsym(file, "jpeg_read_header");
    library.start = dlsym(file, "jpeg_start_decompress");
    library.crop = dlsym(file, "jpeg_crop_scanline");
    library.skip = dlsym(file, "jpeg_skip_scanlines");
    library.read = dlsym(file, "jpeg_read_scanlines");
    library.finish = dlsym(file, "jpeg_finish_decompress");
    library.destroy = dlsym(file, "jpeg_destroy_decompress");
    library.resync = dlsym(file, "jpeg_resync_to_restart");
    if (!(library.standard_messages && library.create && library.read_header && library.start && library.crop &&
          library.skip && library.read && library.finish && library.destroy && library.resync))
        return 1;
    Job *const job = new_job(NULL);
    if (!job) return 1;
    if (setjmp(job->failed)) return end(job, 1);
    create(job);
    return end(job, 0);
}
