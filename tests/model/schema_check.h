/* Whether a value satisfies a JSON Schema, written against the specification and with jansson and PCRE2, so that it
 * shares nothing with what it checks. oneOf counts as anyOf. */
#ifndef MU_TESTS_MODEL_SCHEMA_CHECK_H
#define MU_TESTS_MODEL_SCHEMA_CHECK_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <arpa/inet.h>
#include <jansson.h>
#include <math.h>
#include <pcre2.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const char *const CHECK_FORMATS[][2] = {
    {"date-time",
     "^(?!0000)\\d{4}-(0\\d|1[0-2])-[0-3]\\dT[0-2]\\d:[0-5]\\d:[0-5]\\d(\\.\\d+)?(Z|[+-][0-2]\\d:[0-5]\\d)$"},
    {"date", "^(?!0000)\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])$"},
    {"time", "^[0-2]\\d:[0-5]\\d:[0-5]\\d(\\.\\d+)?(Z|[+-][0-2]\\d:[0-5]\\d)$"},
    {"duration", "^P(?!$)(\\d+W|(\\d+Y)?(\\d+M)?(\\d+D)?(T(?!$)(\\d+H)?(\\d+M)?(\\d+S)?)?)$"},
    {"email", "^[^@\\s]+@[^@\\s.-][^@\\s]*\\.[^@\\s]*[^@\\s.-]$"},
    {"hostname", "^(?!-)[a-zA-Z0-9-]{1,63}(?<!-)(\\.(?!-)[a-zA-Z0-9-]{1,63}(?<!-))*$"},
    {"ipv4", "^((25[0-5]|2[0-4]\\d|1?\\d?\\d)(\\.(?!$)|$)){4}$"},
    {"uuid", "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"},
    {"uri", "^[a-zA-Z][a-zA-Z0-9+.-]*:\\S+$"},
};

static inline bool check_regex(const char *pattern, const char *text, size_t len)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &code, &at, NULL);
    if (!re) abort();
    pcre2_match_data *match = pcre2_match_data_create(8, NULL);
    bool yes = pcre2_match(re, (PCRE2_SPTR)text, len, 0, 0, match, NULL) >= 0;
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    return yes;
}

static inline bool check_type(const char *type, const json_t *v)
{
    if (!strcmp(type, "null")) return json_is_null(v);
    if (!strcmp(type, "boolean")) return json_is_boolean(v);
    if (!strcmp(type, "object")) return json_is_object(v);
    if (!strcmp(type, "array")) return json_is_array(v);
    if (!strcmp(type, "string")) return json_is_string(v);
    if (!strcmp(type, "number")) return json_is_number(v);
    return json_is_integer(v) || (json_is_real(v) && floor(json_real_value(v)) == json_real_value(v));
}

static inline bool check_equal(const json_t *x, const json_t *y)
{
    return json_is_number(x) && json_is_number(y) ? json_number_value(x) == json_number_value(y) : json_equal(x, y);
}

static inline const json_t *check_follow(const json_t *root, const char *ref)
{
    char step[128];
    for (ref++; *ref == '/';) {
        size_t n = 0;
        for (ref++; *ref && *ref != '/'; ref++) {
            if (!strncmp(ref, "~1", 2)) {
                step[n++] = '/', ref++;
            } else if (!strncmp(ref, "%25", 3)) {
                step[n++] = '%', ref += 2;
            } else {
                step[n++] = *ref;
            }
        }
        step[n] = '\0';
        root = json_object_get(root, step);
    }
    return root;
}

static inline size_t check_length(const char *p, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += (p[i] & 0xC0) != 0x80;
    return k;
}

static inline bool check_schema(const json_t *root, const json_t *s, json_t *v)
{
    const json_t *k, *x;
    json_t *kid;
    size_t i;
    const char *key, *name;
    bool any = false;
    if (json_is_boolean(s)) return json_is_true(s);
    if ((k = json_object_get(s, "$ref")) && !check_schema(root, check_follow(root, json_string_value(k)), v))
        return false;
    if ((k = json_object_get(s, "type"))) {
        if (json_is_string(k)) any = check_type(json_string_value(k), v);
        for (i = 0; i < json_array_size(k); i++) any |= check_type(json_string_value(json_array_get(k, i)), v);
        if (!any) return false;
    }
    if ((k = json_object_get(s, "const")) && !check_equal(k, v)) return false;
    if ((k = json_object_get(s, "enum"))) {
        for (any = false, i = 0; i < json_array_size(k); i++) any |= check_equal(json_array_get(k, i), v);
        if (!any) return false;
    }
    k = json_object_get(s, "allOf");
    for (i = 0; i < json_array_size(k); i++) {
        if (!check_schema(root, json_array_get(k, i), v)) return false;
    }
    for (int one = 0; one < 2; one++) {
        k = json_object_get(s, one ? "oneOf" : "anyOf");
        for (any = !k, i = 0; i < json_array_size(k); i++) any |= check_schema(root, json_array_get(k, i), v);
        if (!any) return false;
    }
    if (json_is_number(v)) {
        double d = json_number_value(v);
        if ((k = json_object_get(s, "minimum")) && !(d >= json_number_value(k))) return false;
        if ((k = json_object_get(s, "maximum")) && !(d <= json_number_value(k))) return false;
        if ((k = json_object_get(s, "exclusiveMinimum")) && !(d > json_number_value(k))) return false;
        if ((k = json_object_get(s, "exclusiveMaximum")) && !(d < json_number_value(k))) return false;
        if ((k = json_object_get(s, "multipleOf"))) {
            double q = d / json_number_value(k); /* of larger ones the double knows no such fraction */
            if (fabs(q) < 1e11 && !(fabs(q - round(q)) < 1e-4)) return false;
        }
    }
    if (json_is_string(v)) {
        const char *p = json_string_value(v);
        size_t len = json_string_length(v), n = check_length(p, len);
        if ((k = json_object_get(s, "minLength")) && n < (size_t)json_number_value(k)) return false;
        if ((k = json_object_get(s, "maxLength")) && n > (size_t)json_number_value(k)) return false;
        if ((k = json_object_get(s, "pattern")) && !check_regex(json_string_value(k), p, len)) return false;
        k = json_object_get(s, "format");
        unsigned char address[16];
        if (k && !strcmp(json_string_value(k), "ipv6") && inet_pton(AF_INET6, p, address) != 1) return false;
        for (i = 0; k && i < sizeof CHECK_FORMATS / sizeof *CHECK_FORMATS; i++) {
            if (!strcmp(CHECK_FORMATS[i][0], json_string_value(k)) && !check_regex(CHECK_FORMATS[i][1], p, len))
                return false;
        }
    }
    if (json_is_array(v)) {
        if ((k = json_object_get(s, "minItems")) && json_array_size(v) < (size_t)json_number_value(k)) return false;
        if ((k = json_object_get(s, "maxItems")) && json_array_size(v) > (size_t)json_number_value(k)) return false;
        json_array_foreach(v, i, kid)
        {
            k = json_array_get(json_object_get(s, "prefixItems"), i);
            if (!k) k = json_object_get(s, "items");
            if (k && !check_schema(root, k, kid)) return false;
        }
    }
    if (json_is_object(v)) {
        if ((k = json_object_get(s, "minProperties")) && json_object_size(v) < (size_t)json_number_value(k))
            return false;
        if ((k = json_object_get(s, "maxProperties")) && json_object_size(v) > (size_t)json_number_value(k))
            return false;
        k = json_object_get(s, "required");
        for (i = 0; i < json_array_size(k); i++) {
            if (!json_object_get(v, json_string_value(json_array_get(k, i)))) return false;
        }
        json_object_foreach(v, key, kid)
        {
            json_t *value;
            bool said = false;
            if ((x = json_object_get(json_object_get(s, "properties"), key))) {
                said = true;
                if (!check_schema(root, x, kid)) return false;
            }
            json_object_foreach((json_t *)json_object_get(s, "patternProperties"), name, value)
            {
                if (!check_regex(name, key, strlen(key))) continue;
                said = true;
                if (!check_schema(root, value, kid)) return false;
            }
            x = json_object_get(s, "additionalProperties");
            if (!said && x && !check_schema(root, x, kid)) return false;
        }
    }
    return true;
}

#endif
