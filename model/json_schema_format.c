/* Formats of strings as regular expressions, of a whole string. Each describes strings that are of the format and leaves
 * out some of its rarer forms (comments in mail addresses, leap seconds): what is written is then right. */
#include <string.h>

#include "model/json_schema_part.h"

#define LEAP_YEAR "(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#define DATE                                                                                                \
    "(?:(?:\\d\\d\\d[1-9]|\\d\\d[1-9]0|\\d[1-9]00|[1-9]000)-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])" \
    "|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))|" LEAP_YEAR "-02-29)"
#define HOUR   "(?:[01]\\d|2[0-3])"
#define TIME   HOUR ":[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-]" HOUR ":[0-5]\\d)"
#define LABEL  "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
#define HOST   LABEL "(?:\\." LABEL "){0,2}"
#define OCTET  "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define IPV4   OCTET "(?:\\." OCTET "){3}"
#define H16    "[0-9A-Fa-f]{1,4}"
#define N      "\\d{1,9}"
#define T_PART "T(?:" N "H(?:" N "M(?:" N "S)?)?|" N "M(?:" N "S)?|" N "S)"
#define IPV6                                                                                                 \
    "(?:(?:" H16 ":){7}" H16 "|(?:" H16 ":){1,7}:|(?:" H16 ":){1,6}:" H16 "|(?:" H16 ":){1,5}(?::" H16       \
    "){1,2}|(?:" H16 ":){1,4}(?::" H16 "){1,3}|(?:" H16 ":){1,3}(?::" H16 "){1,4}|(?:" H16 ":){1,2}(?::" H16 \
    "){1,5}|" H16 ":(?::" H16 "){1,6}|:(?:(?::" H16 "){1,7}|:))"
#define PCHAR "-A-Za-z0-9._~!$&'()*+,;=:@" /* RFC 3986's, without %XX */
#define BYTE  "%[0-9A-Fa-f]{2}"
#define REST  "(?:[" PCHAR "/?]|" BYTE ")*" /* of a path, with its query; or of a fragment */
#define USER  "(?:[-A-Za-z0-9._~!$&'()*+,;=:]|" BYTE ")*@"

static const struct {
    const char *name, *regex;
    uint32_t most; /* characters, where the schema does not bound them and the expression neither; 0: it does */
} FORMATS[] = {
    {"date-time", DATE "T" TIME, 0},
    {"date", DATE, 0},
    {"time", TIME, 0},
    {"duration", "P(?:" N "W|(?:" N "Y(?:" N "M(?:" N "D)?)?|" N "M(?:" N "D)?|" N "D)(?:" T_PART ")?|" T_PART ")", 0},
    {"email", "[A-Za-z0-9_+-]{1,20}(?:\\.[A-Za-z0-9_+-]{1,20}){0,2}@" LABEL "(?:\\." LABEL "){1,2}", 0},
    {"hostname", HOST, 0},
    {"ipv4", IPV4, 0},
    {"ipv6", IPV6, 0},
    {"uuid", "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}", 0},
    {"uri",
     "[A-Za-z][A-Za-z0-9+.-]{0,15}:(?://(?:" USER ")?[A-Za-z0-9.-]*(?::\\d*)?(?:[/?]" REST ")?|/?(?:[" PCHAR "]|" BYTE
     ")" REST ")(?:#" REST ")?",
     500},
};

const char *mu_schema_format(const char *name, uint32_t *max)
{
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++) {
        if (strcmp(FORMATS[i].name, name)) continue;
        if (*max == MU_MANY && FORMATS[i].most) *max = FORMATS[i].most;
        return FORMATS[i].regex;
    }
    return NULL;
}
