/* The pre-tokenizers, by the names that files give them.
 *
 * The patterns are those of the models' own tokenizer.json files, with two changes that alter no result: white space
 * is spelled as the Unicode property (PCRE2's \s also has U+180E), and a pattern that would try a run of white space
 * from each of its characters looks behind first, so that a megabyte of spaces costs one pass.
 *
 * Alternative rejected: hand-written scanners per family. They would be faster, but every new family would be code
 * instead of a line, and the merging after it costs more than the cutting. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/pretokenizer.h"

#include <pcre2.h>
#include <string.h>

#include "base/alloc.h"
#include "model/utf8.h"

#define WS   "\\p{White_Space}"
#define NOWS "\\P{White_Space}"

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define GPT2_TAIL    WS "+(?!" NOWS ")"
#define GPT2         CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" GPT2_TAIL
#define LINES        WS "*[\\r\\n]+|" GPT2_TAIL "|" WS "+"
#define CL100K(digits) \
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" LINES
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define O200K(suffix, digits)                                                                                \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" suffix "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" suffix \
    "|\\p{N}" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" LINES

static const char P_GPT2[] = GPT2;
static const char P_DIGIT[] = "\\p{N}";
static const char P_DIGITS[] = "\\p{N}+";
static const char P_DIGITS3[] = "\\p{N}{1,3}";
static const char P_ASCII3[] = "[0-9][0-9][0-9]";
static const char P_LLAMA3[] = CL100K("{1,3}");
static const char P_QWEN2[] = CL100K("");
static const char P_QWEN35[] =
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINES;
static const char P_NO_CONTRACTIONS[] = /* Qwen 2's, but that suffixes after an apostrophe stay with it */
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" LINES;
static const char P_CL100K_NUMBERS[] = CL100K("+");
static const char P_BAILING[] = "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^" WS
                                "\\p{L}\\p{N}]++[\\r\\n]*|" WS "*[\\r\\n]|" GPT2_TAIL "|" WS "+";
static const char P_EXAONE_MOE[] =
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*+(?: \\p{L}\\p{M}*+)*+)++|\\p{N}| ?[^" WS
    "\\p{L}\\p{N}]+[\\r\\n/]?|" WS "*[\\r\\n]|" GPT2_TAIL "|" WS "+";
#define RUN(n) WS "{" n "}(?!" NOWS ")|"
/* Runs of white space in halves. Within a run, behind its first piece, no line end can follow: it is not looked for
 * again, which would take the square of a long run. */
static const char P_JAIS2[] = "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^" WS
                              "\\p{L}\\p{N}]+[\\r\\n]*|(?<![^" NOWS "\\r\\n])" WS "*[\\r\\n]+|" RUN("512") RUN("256")
                                  RUN("128") RUN("64") RUN("32") RUN("16") RUN("8") RUN("4") RUN("1,2") WS;
static const char P_SEED[] =
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]+|" LINES;
static const char P_GPT4O[] = O200K("(?i:" CONTRACTIONS ")?", "{1,3}");
static const char P_TEKKEN[] = O200K("", "");
/* Kimi: o200k's words without Chinese characters, which are words of their own. Its loops are written so that nothing
 * is tried twice: small letters end a word, else the last caseless one does, else there are capitals only. */
#define NOT_HAN(class) "(?:(?!\\p{sc:Han})[" class "])"
#define CASELESS       "\\p{Lm}\\p{Lo}\\p{M}"
#define KIMI_PREFIX    "[^\\r\\n\\p{L}\\p{N}]?"
#define KIMI_SUFFIX    "(?i:" CONTRACTIONS ")?"
#define KIMI_WORD                                                                                                      \
    "(?>" NOT_HAN("\\p{Lu}\\p{Lt}" CASELESS) "*+\\p{Ll}" NOT_HAN("\\p{Ll}" CASELESS) "*+"                              \
                                                                                     "|(?:[\\p{Lu}\\p{Lt}]*+" NOT_HAN( \
                                                                                         CASELESS) "++)++)"
static const char P_KIMI[] = "\\p{sc:Han}+|" KIMI_PREFIX KIMI_WORD KIMI_SUFFIX "|" KIMI_PREFIX
                             "[\\p{Lu}\\p{Lt}]++" KIMI_SUFFIX "|\\p{N}{1,3}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" LINES;
static const char P_BLOOM[] = " ?[^(" WS "|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{0964}\\x{06D4}\\x{060C})]+";
/* Digits in groups of three counted from the right: no pattern says that in linear time, so cut_right3 does it. */
static const char P_RIGHT3[] = "\\p{Nd}+";
static const char P_PUNCT[] = "[\\p{P}$+<=>^~|]+";
static const char P_PUNCT_FALCON[] = "[\\p{P}$+<=>^~|`]+";
static const char P_NEWLINE[] = "[\\r\\n]";
static const char P_TRAILING[] = "(?<!" WS ")" WS "++\\z";
static const char P_CJK[] = "[\\x{4E00}-\\x{9FA5}\\x{0800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+";
static const char P_CJK_KANA[] = "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+";
static const char P_DS_WORD[] = /* cased letters, of the Unicode version the model was made with */
    WS "?["
       "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"
       "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}"
       "\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}"
       "\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}"
       "\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}"
       "\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}"
       "\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}"
       "\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}"
       "\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}"
       "\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"
       "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"
       "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}"
       "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}"
       "\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}"
       "]+";
static const char
    P_DS_PUNCT[] = /* ':' to '~' has the letters in it: words with accents are cut again, in the original too */
    WS "?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+";
static const char P_DSC_WORD[] = WS "?\\p{L}+";
static const char P_DSC_PUNCT[] = WS "?\\p{P}+";
static const char P_DS3[] =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINES;

enum { PATTERNS_MAX = 8, FOREIGN_STEPS = 1000000, FOREIGN_HEAP_KIB = 256 * 1024 };

struct family {
    const char *names; /* separated by spaces, the commonest first */
    bool adds_bos, whole_words;
    const char *patterns[PATTERNS_MAX];
};

/* Names and which pattern each stands for are the reference converter's and reader's (llama.cpp); the patterns are
 * those of the models' own tokenizers where the reference only comes near them. Left out because what they mean could
 * not be made sure of: afmoe, chameleon, cohere2moe, laguna, spark2_5, tiny_aya, youtu, and those of encoders. */
static const struct family FAMILIES[] = {
    {"default", false, false, {P_PUNCT, P_GPT2, P_DIGITS, P_ASCII3}},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 midm-2.0", true, true, {P_LLAMA3}},
    {"dbrx smaug-bpe glm4 chatglm-bpe", false, false, {P_LLAMA3}},
    {"qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan grok-2 kormo solar-open", false, false, {P_QWEN2}},
    {"qwen35", false, false, {P_QWEN35}},
    {"gpt-2 phi-2 mpt olmo jais trillion exaone4 gigachat modern-bert mellum granite-docling a.x-4.0",
     false,
     false,
     {P_GPT2}},
    {"starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", false, false, {P_DIGIT, P_GPT2}},
    {"falcon", false, false, {P_PUNCT_FALCON, P_GPT2, P_ASCII3}},
    {"deepseek-llm", false, false, {P_NEWLINE, P_DS_WORD, P_DS_PUNCT, P_TRAILING, P_CJK, P_DIGITS}},
    {"deepseek-coder", false, false, {P_NEWLINE, P_DSC_WORD, P_DSC_PUNCT, P_CJK, P_DIGIT}},
    {"deepseek-v3 hunyuan-dense joyai-llm hy_v4", false, false, {P_DIGITS3, P_CJK_KANA, P_DS3}},
    {"gpt-4o llama4 kanana2 minimax-m2 talkie", false, false, {P_GPT4O}},
    {"tekken", true, true, {P_TEKKEN}},
    {"kimi-k2", false, false, {P_KIMI}},
    {"seed-coder", false, false, {P_SEED}},
    {"bloom poro-chat gpt3-finnish", false, false, {P_BLOOM}},
    {"viking", false, false, {P_BLOOM, P_DIGIT}},
    {"bailingmoe bailingmoe2 llada-moe", false, false, {P_BAILING}},
    {"exaone-moe", false, false, {P_EXAONE_MOE}},
    {"superbpe", false, false, {P_DIGITS, P_RIGHT3}},
    {"jais-2", false, false, {P_JAIS2}},
    {"minicpm5", false, true, {P_DIGITS3, P_CL100K_NUMBERS}},
    {"ufakzeka", false, false, {P_NO_CONTRACTIONS}},
};

struct mu_pre {
    bool adds_bos, whole_words, foreign;
    pcre2_general_context *general;
    pcre2_code *code[PATTERNS_MAX];
    bool jit[PATTERNS_MAX];
    bool right3[PATTERNS_MAX]; /* cut_right3 does it */
    int n;
};

struct mu_pre_run {
    const struct mu_pre *pre;
    pcre2_match_context *match;
    pcre2_match_data *data[PATTERNS_MAX];
};

static void *pre_malloc(size_t n, void *ctx)
{
    (void)ctx;
    return mu_malloc(n);
}
static void pre_free(void *p, void *ctx)
{
    (void)ctx;
    mu_free(p);
}

static const struct family *family_of(struct mu_str name)
{
    for (size_t i = 0; i < sizeof FAMILIES / sizeof FAMILIES[0]; i++) {
        for (const char *p = FAMILIES[i].names; *p;) {
            size_t n = strcspn(p, " ");
            if (n == name.len && !memcmp(p, name.p, n)) return &FAMILIES[i];
            p += n + (p[n] == ' ');
        }
    }
    return NULL;
}

static enum mu_status pre_new(struct mu_pre **pre_out, struct mu_err *err)
{
    struct mu_pre *pre = mu_calloc(1, sizeof *pre);
    if (pre) pre->general = pcre2_general_context_create(pre_malloc, pre_free, NULL);
    if (pre && pre->general) {
        *pre_out = pre;
        return MU_OK;
    }
    mu_pre_close(pre);
    return mu_fail(err, MU_ENOMEM, "no memory for the pre-tokenizer");
}

/* Adds a pattern. `foreign`: from a file, so that it may be anything. */
static enum mu_status add_pattern(struct mu_pre *pre, struct mu_str pattern, bool foreign, struct mu_err *err)
{
    int code = 0;
    PCRE2_SIZE at = 0;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | (foreign ? PCRE2_NEVER_BACKSLASH_C : 0);
    pcre2_compile_context *cc = pcre2_compile_context_create(pre->general);
    if (!cc) return mu_fail(err, MU_ENOMEM, "no memory for the pre-tokenizer");
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern.p, pattern.len, options, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (c) {
        pre->code[pre->n] = c;
        /* Without JIT (forbidden by a hardened kernel, say) the interpreter gives the same words, slower. */
        pre->jit[pre->n++] = pcre2_jit_compile(c, PCRE2_JIT_COMPLETE) == 0;
        return MU_OK;
    }
    if (code == PCRE2_ERROR_NOMEMORY || code == PCRE2_ERROR_HEAP_FAILED)
        return mu_fail(err, MU_ENOMEM, "no memory for the pre-tokenizer");
    char text[128] = "", shown[128];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
    return mu_fail(err, foreign ? MU_EUNSUPPORTED : MU_EINTERNAL,
                   "pre-tokenizer pattern %d, '%s', does not compile at %zu: %s; %s", pre->n,
                   mu_str_show(pattern, shown, sizeof shown), (size_t)at, text,
                   foreign ? "use a GGUF file of this model" : "PCRE2 10.40 or later is needed");
}

enum mu_status mu_pre_open(struct mu_str name, struct mu_pre **pre_out, struct mu_err *err)
{
    const struct family *f = name.p ? family_of(name) : &FAMILIES[0];
    if (!f) {
        char shown[64];
        return mu_fail(err, MU_EUNSUPPORTED,
                       "pre-tokenizer '%s' (tokenizer.ggml.pre) is not known to this version; use a model of a "
                       "known family",
                       mu_text_show(name.p, name.len, shown, sizeof shown));
    }
    struct mu_pre *pre;
    enum mu_status st = pre_new(&pre, err);
    if (st != MU_OK) return st;
    pre->adds_bos = f->adds_bos;
    pre->whole_words = f->whole_words;
    for (int i = 0; i < PATTERNS_MAX && f->patterns[i] && st == MU_OK; i++) {
        pre->right3[i] = f->patterns[i] == P_RIGHT3;
        st = add_pattern(pre, (struct mu_str){f->patterns[i], strlen(f->patterns[i])}, false, err);
    }
    if (st == MU_OK)
        *pre_out = pre;
    else
        mu_pre_close(pre);
    return st;
}

enum mu_status mu_pre_open_patterns(const struct mu_str *patterns, uint64_t n, struct mu_pre **pre_out,
                                    struct mu_err *err)
{
    struct mu_pre *pre;
    if (n > PATTERNS_MAX)
        return mu_fail(err, MU_EUNSUPPORTED, "a pre-tokenizer of %llu patterns, expected at most %d",
                       (unsigned long long)n, PATTERNS_MAX);
    enum mu_status st = pre_new(&pre, err);
    if (st != MU_OK) return st;
    pre->foreign = true;
    for (uint64_t i = 0; i < n && st == MU_OK; i++) st = add_pattern(pre, patterns[i], true, err);
    if (st == MU_OK)
        *pre_out = pre;
    else
        mu_pre_close(pre);
    return st;
}

struct mu_str mu_pre_name_of(const struct mu_str *patterns, int n, bool whole_words)
{
    const struct family *found = NULL;
    for (size_t i = 0; i < sizeof FAMILIES / sizeof FAMILIES[0]; i++) {
        const struct family *f = &FAMILIES[i];
        int k = 0;
        while (k < n && k < PATTERNS_MAX && f->patterns[k] && mu_str_is(patterns[k], f->patterns[k])) k++;
        bool same = k == n && (k == PATTERNS_MAX || !f->patterns[k]);
        if (same && (!found || f->whole_words == whole_words)) found = f;
    }
    return found ? (struct mu_str){found->names, strcspn(found->names, " ")} : (struct mu_str){NULL, 0};
}

struct mu_str mu_pre_gpt2(void)
{
    return (struct mu_str){P_GPT2, sizeof P_GPT2 - 1};
}

struct mu_str mu_pre_plain(struct mu_str p)
{
    /* White space that nothing else took is a piece of its own in any case. */
    static const char tailed[] = GPT2 "|" WS "+";
    return mu_str_is(p, tailed) ? mu_pre_gpt2() : p;
}

const char *mu_pretokenizer_names(int family)
{
    return family >= 0 && family < (int)(sizeof FAMILIES / sizeof FAMILIES[0]) ? FAMILIES[family].names : NULL;
}

void mu_pre_close(struct mu_pre *pre)
{
    if (!pre) return;
    for (int i = 0; i < PATTERNS_MAX; i++) pcre2_code_free(pre->code[i]);
    pcre2_general_context_free(pre->general);
    mu_free(pre);
}

bool mu_pre_adds_bos(const struct mu_pre *pre)
{
    return pre->adds_bos;
}
bool mu_pre_whole_words(const struct mu_pre *pre)
{
    return pre->whole_words;
}

enum mu_status mu_pre_run_open(const struct mu_pre *pre, struct mu_pre_run **run_out, struct mu_err *err)
{
    struct mu_pre_run *run = mu_calloc(1, sizeof *run);
    if (!run) goto nomem;
    run->pre = pre;
    run->match = pcre2_match_context_create(pre->general);
    if (!run->match) goto nomem;
    /* No limit on steps where the patterns are ours: none of them explodes. mu_pre_cut sets one where they aren't. */
    pcre2_set_match_limit(run->match, UINT32_MAX);
    pcre2_set_depth_limit(run->match, UINT32_MAX);
    for (int i = 0; i < pre->n; i++) {
        run->data[i] = pcre2_match_data_create(1, pre->general);
        if (!run->data[i]) goto nomem;
    }
    *run_out = run;
    return MU_OK;
nomem:
    mu_pre_run_close(run);
    return mu_fail(err, MU_ENOMEM, "no memory for the pre-tokenizer");
}

void mu_pre_run_close(struct mu_pre_run *run)
{
    if (!run) return;
    for (int i = 0; i < PATTERNS_MAX; i++) pcre2_match_data_free(run->data[i]);
    pcre2_match_context_free(run->match);
    mu_free(run);
}

/* The next match of pattern `level` in text from `from` on. *found false: there is none. */
static enum mu_status next_match(struct mu_pre_run *run, int level, const char *text, size_t len, size_t from,
                                 bool *found, struct mu_err *err)
{
    const pcre2_code *code = run->pre->code[level];
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (run->pre->jit[level])
        rc = pcre2_jit_match(code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK, run->data[level], run->match);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) { /* the interpreter's stack is the heap */
        rc = pcre2_match(code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, run->data[level],
                         run->match);
    }
    *found = rc >= 0;
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH) return MU_OK;
    if (rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_HEAPLIMIT) {
        return mu_fail(err, MU_ENOMEM, "no memory to cut a text of %zu bytes into words", len);
    }
    if (rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT) {
        return mu_fail(
            err, MU_ELIMIT,
            "cutting a text of %zu bytes into words takes too many steps at %zu: the model's own pre-tokenizer "
            "pattern is not fit for such a text",
            len, from);
    }
    return mu_fail(err, MU_EINTERNAL, "cutting a text of %zu bytes into words failed at %zu: PCRE2 error %d", len, from,
                   rc);
}

static enum mu_status cut(struct mu_pre_run *run, int level, const char *text, size_t len, mu_pre_word word, void *ctx,
                          struct mu_err *err);

static size_t char_len(const char *text)
{
    return (size_t)mu_utf8_need((unsigned char)*text);
}

/* In every run of digits, a cut before each place from which a multiple of three of them follows. */
static enum mu_status cut_right3(struct mu_pre_run *run, int level, const char *text, size_t len, mu_pre_word word,
                                 void *ctx, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    size_t at = 0;
    bool found = true;
    for (size_t from = 0; from < len && found;) {
        MU_TRY(st, next_match(run, level, text, len, from, &found, err), fail);
        if (!found) break;
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(run->data[level]);
        size_t pos = ov[0], end = ov[1], n = 0;
        for (size_t i = pos; i < end; i += char_len(text + i)) n++;
        for (size_t step = n % 3; pos < end; step = 3) {
            while (step--) pos += char_len(text + pos);
            if (pos == at || pos == end) continue;
            MU_TRY(st, cut(run, level + 1, text + at, pos - at, word, ctx, err), fail);
            at = pos;
        }
        from = end;
    }
    st = cut(run, level + 1, text + at, len - at, word, ctx, err);
fail:
    return st;
}

/* An empty match (only patterns from files have them) is a cut at its place. */
static enum mu_status cut(struct mu_pre_run *run, int level, const char *text, size_t len, mu_pre_word word, void *ctx,
                          struct mu_err *err)
{
    if (level == run->pre->n) return word(ctx, text, len, err);
    if (run->pre->right3[level]) return cut_right3(run, level, text, len, word, ctx, err);
    size_t at = 0, from = 0;
    while (at < len) {
        bool found = false;
        enum mu_status st = MU_OK;
        if (from < len) st = next_match(run, level, text, len, from, &found, err);
        if (st != MU_OK) return st;
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(run->data[level]);
        size_t start = found ? ov[0] : len, end = found ? ov[1] : len;
        if (start < at) start = at; /* \K in a pattern may say anything */
        if (end < start) end = start;
        if (start > at) {
            st = cut(run, level + 1, text + at, start - at, word, ctx, err);
            if (st != MU_OK) return st;
        }
        if (end > start) {
            st = cut(run, level + 1, text + start, end - start, word, ctx, err);
            if (st != MU_OK) return st;
        }
        at = end;
        from = end > start || !found || end >= len ? end : end + char_len(text + end);
    }
    return MU_OK;
}

enum mu_status mu_pre_cut(struct mu_pre_run *run, const char *text, size_t len, mu_pre_word word, void *ctx,
                          struct mu_err *err)
{
    if (run->pre->foreign) { /* some steps for every byte; one match must not take the square of a long text */
        size_t steps = FOREIGN_STEPS + 32 * len; /* len is below 2^29 */
        pcre2_set_match_limit(run->match, steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX);
        pcre2_set_heap_limit(run->match, FOREIGN_HEAP_KIB);
    }
    return cut(run, 0, text, len, word, ctx, err);
}
