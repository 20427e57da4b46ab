/* The methods of text, as Python's str has them. */
#include <string.h>

#include "model/jinja.h"

#define METHOD(name) static struct mu_jv name(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a)

static const struct mu_js *text_or_null(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name)
{
    struct mu_jv v;
    if (!mu_ji_arg(a, i, name, &v) || v.kind == MU_JK_NONE) return NULL;
    return mu_ji_want_str(j, a, i, name);
}

METHOD(m_upper)
{
    (void)a;
    return mu_js_case(j, self.s, true);
}

METHOD(m_lower)
{
    (void)a;
    return mu_js_case(j, self.s, false);
}

METHOD(m_capitalize)
{
    (void)a;
    return mu_js_capitalize(j, self.s);
}

/* Every run of letters begins with a capital. */
METHOD(m_title)
{
    size_t mark = j->out_len;
    bool within = false;
    (void)a;
    mu_ji_steps(j, self.s->len / 16);
    for (size_t at = 0; at < self.s->len;) {
        uint32_t cp = mu_js_at(self.s, &at);
        mu_ji_put_cp(j, within ? mu_jc_lower(j, cp) : mu_jc_upper(j, cp));
        within = mu_jc_alpha(j, cp);
    }
    return mu_ji_take(j, mark);
}

METHOD(m_swapcase)
{
    size_t mark = j->out_len;
    (void)a;
    mu_ji_steps(j, self.s->len / 16);
    for (size_t at = 0; at < self.s->len;) {
        uint32_t cp = mu_js_at(self.s, &at), up = mu_jc_upper(j, cp);
        mu_ji_put_cp(j, up != cp ? up : mu_jc_lower(j, cp));
    }
    return mu_ji_take(j, mark);
}

METHOD(m_strip)
{
    return mu_js_strip(j, self.s, text_or_null(j, a, 0, "chars"), 3);
}

METHOD(m_lstrip)
{
    return mu_js_strip(j, self.s, text_or_null(j, a, 0, "chars"), 1);
}

METHOD(m_rstrip)
{
    return mu_js_strip(j, self.s, text_or_null(j, a, 0, "chars"), 2);
}

/* ---- splitting and joining ---- */

static void push_part(struct mu_ji *j, struct mu_jl *l, const struct mu_js *s, size_t begin, size_t end)
{
    mu_jl_push(j, l, mu_jv_borrow(j, s->p + begin, end - begin));
}

/* At white space: runs of it separate, and the ends have none. Beyond max parts the rest stays whole. */
static void split_space(struct mu_ji *j, struct mu_jl *l, const struct mu_js *s, int64_t max)
{
    size_t at = 0, begin, end;
    while (at < s->len) {
        begin = end = at;
        if (mu_jc_space(mu_js_at(s, &at))) continue;
        if (max-- == 0) {
            push_part(j, l, s, begin, s->len);
            return;
        }
        for (end = at; at < s->len; end = at)
            if (mu_jc_space(mu_js_at(s, &at))) break;
        push_part(j, l, s, begin, end);
    }
}

/* what is not empty. The C library finds first places in linear time, but no last ones: this is paid for in steps. */
static size_t find_last(struct mu_ji *j, const struct mu_js *s, size_t end, const struct mu_js *what)
{
    for (size_t at = end < what->len ? 0 : end - what->len + 1; at-- > 0;) {
        if (s->p[at] != what->p[0]) continue;
        mu_ji_steps(j, 1 + what->len / 64);
        if (memcmp(s->p + at, what->p, what->len) == 0) return at;
    }
    return SIZE_MAX;
}

static void reverse(struct mu_jl *l)
{
    for (size_t i = 0; i < l->n / 2; i++) {
        struct mu_jv v = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = v;
    }
}

static void rsplit_space(struct mu_ji *j, struct mu_jl *l, const struct mu_js *s, int64_t max)
{
    struct mu_jl *all = mu_jl_new(j, 0);
    split_space(j, all, s, -1);
    size_t keep = max < 0 || (uint64_t)max >= all->n ? all->n : (size_t)max;
    if (keep < all->n) { /* the first ones stay whole */
        const struct mu_js *last = all->v[all->n - keep - 1].s;
        push_part(j, l, s, 0, (size_t)(last->p + last->len - s->p));
    }
    for (size_t i = all->n - keep; i < all->n; i++) mu_jl_push(j, l, all->v[i]);
}

static struct mu_jv split(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a, bool from_right)
{
    const struct mu_js *sep = text_or_null(j, a, 0, "sep"), *s = self.s;
    int64_t max = mu_ji_int_or(j, a, 1, "maxsplit", -1);
    struct mu_jl *l = mu_jl_new(j, 0);
    size_t at = 0, end = s->len, found;
    mu_ji_steps(j, s->len / 64);
    if (!sep) {
        (from_right ? rsplit_space : split_space)(j, l, s, max);
        return mu_jv_list(l);
    }
    if (!sep->len) mu_ji_fail(j, MU_EFORMAT, "split's separator is empty");
    if (!from_right) {
        for (; max != 0 && (found = mu_js_find(s, at, sep)) != SIZE_MAX; max--) {
            push_part(j, l, s, at, found);
            at = found + sep->len;
        }
        push_part(j, l, s, at, s->len);
    } else {
        mu_ji_steps(j, s->len / 16);
        for (; max != 0 && (found = find_last(j, s, end, sep)) != SIZE_MAX; max--) {
            push_part(j, l, s, found + sep->len, end);
            end = found;
        }
        push_part(j, l, s, 0, end);
        reverse(l);
    }
    return mu_jv_list(l);
}

METHOD(m_split)
{
    return split(j, self, a, false);
}

METHOD(m_rsplit)
{
    return split(j, self, a, true);
}

METHOD(m_splitlines)
{
    return mu_jv_list(mu_js_lines(j, self.s, mu_ji_bool_or(j, a, 0, "keepends", false)));
}

static struct mu_jv partition(struct mu_ji *j, const struct mu_js *s, const struct mu_js *sep, bool last)
{
    struct mu_jl *l = mu_jl_new(j, 3);
    if (!sep->len) mu_ji_fail(j, MU_EFORMAT, "partition's separator is empty");
    mu_ji_steps(j, s->len / 16);
    size_t found = last ? find_last(j, s, s->len, sep) : mu_js_find(s, 0, sep);
    bool there = found != SIZE_MAX;
    if (!there) found = last ? 0 : s->len;
    size_t after = there ? found + sep->len : found;
    push_part(j, l, s, 0, found);
    push_part(j, l, s, found, after);
    push_part(j, l, s, after, s->len);
    return (struct mu_jv){.kind = MU_JK_TUPLE, .l = l};
}

METHOD(m_partition)
{
    return partition(j, self.s, mu_ji_want_str(j, a, 0, "sep"), false);
}

METHOD(m_rpartition)
{
    return partition(j, self.s, mu_ji_want_str(j, a, 0, "sep"), true);
}

METHOD(m_join)
{
    const struct mu_jv *items;
    size_t n, mark = j->out_len;
    mu_jv_iterate(j, mu_ji_want(j, a, 0, "iterable"), &items, &n);
    for (size_t i = 0; i < n; i++) {
        if (items[i].kind != MU_JK_STR)
            mu_ji_fail(j, MU_EFORMAT, "join takes texts, and one is of type %s", mu_jk_name(items[i].kind));
        if (i) mu_ji_write(j, self.s->p, self.s->len);
        mu_jv_print(j, items[i]);
    }
    return mu_ji_take(j, mark);
}

/* ---- looking ---- */

static bool has_affix(struct mu_ji *j, const struct mu_js *s, const struct mu_js *affix, bool end)
{
    mu_ji_steps(j, affix->len / 64);
    return affix->len <= s->len && memcmp(s->p + (end ? s->len - affix->len : 0), affix->p, affix->len) == 0;
}

static struct mu_jv affixed(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a, bool end)
{
    struct mu_jv v = mu_ji_want(j, a, 0, end ? "suffix" : "prefix");
    if (v.kind != MU_JK_TUPLE) return mu_jv_bool(has_affix(j, self.s, mu_ji_want_str(j, a, 0, "prefix"), end));
    for (size_t i = 0; i < v.l->n; i++)
        if (v.l->v[i].kind == MU_JK_STR && has_affix(j, self.s, v.l->v[i].s, end)) return mu_jv_bool(true);
    return mu_jv_bool(false);
}

METHOD(m_startswith)
{
    return affixed(j, self, a, false);
}

METHOD(m_endswith)
{
    return affixed(j, self, a, true);
}

static struct mu_jv without_affix(struct mu_ji *j, const struct mu_js *s, const struct mu_js *affix, bool end)
{
    size_t cut = has_affix(j, s, affix, end) ? affix->len : 0;
    return mu_jv_borrow(j, s->p + (end ? 0 : cut), s->len - cut);
}

METHOD(m_removeprefix)
{
    return without_affix(j, self.s, mu_ji_want_str(j, a, 0, "prefix"), false);
}

METHOD(m_removesuffix)
{
    return without_affix(j, self.s, mu_ji_want_str(j, a, 0, "suffix"), true);
}

static int64_t place(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a, bool last)
{
    const struct mu_js *what = mu_ji_want_str(j, a, 0, "sub");
    mu_ji_steps(j, self.s->len / 16);
    int64_t n = (int64_t)mu_js_count(j, self.s), from = mu_ji_int_or(j, a, 1, "start", 0);
    int64_t to = mu_ji_int_or(j, a, 2, "end", n);
    if (from < 0) from = from < -n ? 0 : from + n;
    if (to < 0) to = to < -n ? 0 : to + n;
    if (from > n || to < from) return -1;
    struct mu_js part = {.p = self.s->p, .len = mu_js_offset(self.s, 0, (size_t)to)};
    size_t begin = mu_js_offset(&part, 0, (size_t)from), found;
    if (last) {
        found = what->len ? find_last(j, &part, part.len, what) : part.len;
        if (found != SIZE_MAX && found < begin) found = SIZE_MAX;
    } else {
        found = mu_js_find(&part, begin, what);
    }
    if (found == SIZE_MAX) return -1;
    part.len = found;
    return (int64_t)mu_js_count(j, &part);
}

METHOD(m_find)
{
    return mu_jv_int(place(j, self, a, false));
}

METHOD(m_rfind)
{
    return mu_jv_int(place(j, self, a, true));
}

METHOD(m_index)
{
    int64_t at = place(j, self, a, false);
    if (at < 0) mu_ji_fail(j, MU_EFORMAT, "index: the text is not there");
    return mu_jv_int(at);
}

METHOD(m_rindex)
{
    int64_t at = place(j, self, a, true);
    if (at < 0) mu_ji_fail(j, MU_EFORMAT, "rindex: the text is not there");
    return mu_jv_int(at);
}

METHOD(m_count)
{
    const struct mu_js *what = mu_ji_want_str(j, a, 0, "sub");
    int64_t n = 0;
    mu_ji_steps(j, self.s->len / 64);
    if (!what->len) return mu_jv_int((int64_t)mu_js_count(j, self.s) + 1);
    for (size_t at = 0; (at = mu_js_find(self.s, at, what)) != SIZE_MAX; at += what->len) n++;
    return mu_jv_int(n);
}

METHOD(m_replace)
{
    return mu_js_replace(j, self.s, mu_ji_want_str(j, a, 0, "old"), mu_ji_want_str(j, a, 1, "new"),
                         mu_ji_int_or(j, a, 2, "count", -1));
}

/* ---- what it consists of: true for texts all of whose characters are such ---- */

static struct mu_jv all(struct mu_ji *j, const struct mu_js *s, bool (*is)(struct mu_ji *j, uint32_t cp))
{
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;)
        if (!is(j, mu_js_at(s, &at))) return mu_jv_bool(false);
    return mu_jv_bool(s->len > 0);
}

static bool is_digit(struct mu_ji *j, uint32_t cp)
{
    (void)j;
    return cp >= '0' && cp <= '9';
}

static bool is_alnum(struct mu_ji *j, uint32_t cp)
{
    return is_digit(j, cp) || mu_jc_alpha(j, cp);
}

static bool is_space(struct mu_ji *j, uint32_t cp)
{
    (void)j;
    return mu_jc_space(cp);
}

METHOD(m_isdigit)
{
    (void)a;
    return all(j, self.s, is_digit);
}

METHOD(m_isalpha)
{
    (void)a;
    return all(j, self.s, mu_jc_alpha);
}

METHOD(m_isalnum)
{
    (void)a;
    return all(j, self.s, is_alnum);
}

METHOD(m_isspace)
{
    (void)a;
    return all(j, self.s, is_space);
}

METHOD(m_isascii)
{
    (void)a;
    mu_ji_steps(j, self.s->len / 64);
    for (size_t i = 0; i < self.s->len; i++)
        if ((unsigned char)self.s->p[i] >= 0x80) return mu_jv_bool(false);
    return mu_jv_bool(true);
}

static struct mu_jv cased(struct mu_ji *j, const struct mu_js *s, bool upper)
{
    bool seen = false;
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;) {
        uint32_t cp = mu_js_at(s, &at), up = mu_jc_upper(j, cp), low = mu_jc_lower(j, cp);
        if (cp != (upper ? up : low)) return mu_jv_bool(false);
        seen |= up != low;
    }
    return mu_jv_bool(seen);
}

METHOD(m_isupper)
{
    (void)a;
    return cased(j, self.s, true);
}

METHOD(m_islower)
{
    (void)a;
    return cased(j, self.s, false);
}

/* ---- to a width ---- */

static struct mu_jv padded(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a, char align)
{
    const struct mu_js *fill = text_or_null(j, a, 1, "fillchar");
    size_t at = 0;
    mu_ji_want(j, a, 0, "width");
    if (fill && !fill->len) mu_ji_fail(j, MU_EFORMAT, "the fill character is empty");
    return mu_js_pad(j, self.s, mu_ji_int_or(j, a, 0, "width", 0), fill ? mu_js_at(fill, &at) : ' ', align);
}

METHOD(m_center)
{
    return padded(j, self, a, '^');
}

METHOD(m_ljust)
{
    return padded(j, self, a, '<');
}

METHOD(m_rjust)
{
    return padded(j, self, a, '>');
}

METHOD(m_zfill)
{
    int64_t width = mu_ji_int_or(j, a, 0, "width", 0), n = (int64_t)mu_js_count(j, self.s);
    bool sign = self.s->len && (self.s->p[0] == '-' || self.s->p[0] == '+');
    size_t mark = j->out_len;
    mu_ji_write(j, self.s->p, sign);
    if (width > n) mu_ji_fill(j, "0", 1, (size_t)(width - n));
    mu_ji_write(j, self.s->p + sign, self.s->len - sign);
    return mu_ji_take(j, mark);
}

METHOD(m_format)
{
    return mu_js_format(j, self.s, a);
}

const struct mu_jfunc *mu_js_method(const char *name, size_t len)
{
    static const struct mu_jfunc methods[] = {
        {"strip", m_strip, true},
        {"lstrip", m_lstrip, true},
        {"rstrip", m_rstrip, true},
        {"split", m_split, true},
        {"rsplit", m_rsplit, true},
        {"startswith", m_startswith, true},
        {"endswith", m_endswith, true},
        {"replace", m_replace, true},
        {"join", m_join, true},
        {"upper", m_upper, true},
        {"lower", m_lower, true},
        {"casefold", m_lower, true},
        {"title", m_title, true},
        {"capitalize", m_capitalize, true},
        {"swapcase", m_swapcase, true},
        {"splitlines", m_splitlines, true},
        {"partition", m_partition, true},
        {"rpartition", m_rpartition, true},
        {"find", m_find, true},
        {"rfind", m_rfind, true},
        {"index", m_index, true},
        {"rindex", m_rindex, true},
        {"count", m_count, true},
        {"removeprefix", m_removeprefix, true},
        {"removesuffix", m_removesuffix, true},
        {"isdigit", m_isdigit, true},
        {"isdecimal", m_isdigit, true},
        {"isnumeric", m_isdigit, true},
        {"isalpha", m_isalpha, true},
        {"isalnum", m_isalnum, true},
        {"isspace", m_isspace, true},
        {"isascii", m_isascii, true},
        {"isupper", m_isupper, true},
        {"islower", m_islower, true},
        {"center", m_center, true},
        {"ljust", m_ljust, true},
        {"rjust", m_rjust, true},
        {"zfill", m_zfill, true},
        {"format", m_format, true},
    };
    return mu_jfunc_find(methods, sizeof methods / sizeof *methods, name, len);
}
