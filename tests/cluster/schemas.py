"""Fifty JSON Schemas like those that programs ask models for, and what judges their answers.

Strings and lists are bounded, because the models of these tests say random things and would not stop.
"""
import datetime
import decimal
import ipaddress
import json
import re

import jsonschema


def text(n=12, **more):
    return {"type": "string", "maxLength": n, **more}


def pattern(p, **more):
    return {"type": "string", "pattern": p, **more}


def form(name, n=40):
    return {"type": "string", "format": name, "maxLength": n}


def whole(lo, hi, **more):
    return {"type": "integer", "minimum": lo, "maximum": hi, **more}


def number(lo, hi, **more):
    return {"type": "number", "minimum": lo, "maximum": hi, **more}


def one_of(*values):
    return {"enum": list(values)}


def many(items, lo=0, hi=3):
    return {"type": "array", "items": items, "minItems": lo, "maxItems": hi}


def obj(optional=(), **members):
    return {"type": "object", "properties": members, "required": [k for k in members if k not in optional], "additionalProperties": False}


FLAG = {"type": "boolean"}
MONEY = {"type": "number", "minimum": 0, "maximum": 10000, "multipleOf": 0.01}
ADDRESS = obj(street=text(20), city=text(12), zip=pattern("^[0-9]{5}(-[0-9]{4})?$"), country=one_of("DE", "FR", "GB", "US", "JP"))
PERSON = obj(optional=["phone"], name=text(20, minLength=1), age=whole(0, 130), email=form("email"), phone=pattern(r"^\+?[0-9]{6,14}$"))


def tree(max_children, **members):
    """A node of its own kind below it; half of the lists are empty, so texts end."""
    node = obj(**members, children=many({"$ref": "#/$defs/node"}, 0, max_children))
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


SCHEMAS = [
    # what is said of a text
    obj(sentiment=one_of("positive", "neutral", "negative"), confidence=number(0, 1)),
    obj(label=one_of("spam", "ham"), reasons=many(text(30), 1, 3)),
    obj(language=pattern("^[a-z]{2}(-[A-Z]{2})?$"), script=one_of("Latn", "Cyrl", "Arab", "Hans"), reliable=FLAG),
    obj(title=text(40), summary=text(200), keywords=many(text(10), 2, 5)),
    obj(entities=many(obj(text=text(16), kind=one_of("PERSON", "ORG", "PLACE", "DATE"), start=whole(0, 9999), end=whole(0, 9999)), 0, 4)),
    obj(answer=text(60), citations=many(whole(1, 20), 0, 4), certain=FLAG),
    obj(score=whole(1, 5), strengths=many(text(24), 0, 2), weaknesses=many(text(24), 0, 2)),
    {"enum": ["yes", "no", "unknown"]},
    many(text(12), 3, 5),
    obj(question=text(40), choices={"type": "array", "prefixItems": [text(10)] * 4, "items": False, "minItems": 4}, correct=whole(0, 3)),
    # records
    PERSON,
    obj(person=PERSON, address=ADDRESS),
    obj(first=text(10), last=text(10), born=form("date"), married={"type": ["boolean", "null"]}),
    obj(id=form("uuid"), created=form("date-time"), updated={"anyOf": [form("date-time"), {"type": "null"}]}, version=whole(1, 999)),
    obj(invoice=pattern("^INV-[0-9]{6}$"), due=form("date"), lines=many(obj(item=text(16), count=whole(1, 99), price=MONEY), 1, 3), total=MONEY),
    obj(sku=pattern("^[A-Z]{3}-[0-9]{4}$"), stock=whole(0, 100000), price=MONEY, tags=many(one_of("new", "sale", "last", "eco"), 0, 3)),
    obj(order=whole(1, 10 ** 9), status=one_of("open", "paid", "sent", "returned"), ship_to=ADDRESS, gift={"type": "null"}),
    obj(title=text(30), year=whole(1900, 2100), isbn=pattern("^97[89]-[0-9]-[0-9]{4}-[0-9]{4}-[0-9]$"), authors=many(text(16), 1, 3)),
    obj(patient=pattern("^[A-Z][0-9]{7}$"), heart_rate=whole(20, 250), temperature=number(30, 45), blood=one_of("0", "A", "B", "AB")),
    obj(event=text(24), starts=form("date-time"), ends=form("date-time"), where={"anyOf": [ADDRESS, form("uri")]}),
    obj(recipe=text(24), minutes=whole(1, 600), ingredients=many(obj(name=text(12), grams=number(0, 5000)), 1, 4), steps=many(text(40), 1, 3)),
    obj(flight=pattern("^[A-Z]{2}[0-9]{1,4}$"), gate=pattern("^[A-F][0-9]{1,2}$"), departs=form("time"), seats=many(pattern("^[1-9][0-9]?[A-F]$"), 1, 3)),
    obj(team=text(12), wins=whole(0, 82), losses=whole(0, 82), ratio=number(0, 1, multipleOf=0.001)),
    obj(lat=number(-90, 90), lon=number(-180, 180), altitude={"type": "integer", "exclusiveMinimum": -500, "exclusiveMaximum": 9000}),
    # what machines read
    obj(host=form("hostname"), ip=form("ipv4"), ports=many(whole(1, 65535), 1, 3), up=FLAG),
    obj(gateway=form("ipv6"), mtu=whole(68, 9000, multipleOf=4), mac=pattern("^([0-9A-F]{2}:){5}[0-9A-F]{2}$")),
    obj(level=one_of("debug", "info", "warn", "error"), at=form("date-time"), message=text(60), code={"type": ["integer", "null"], "minimum": 0, "maximum": 599}),
    obj(url=form("uri"), method=one_of("GET", "POST", "PUT", "DELETE"), retry=whole(0, 5), timeout=form("duration")),
    obj(color=pattern("^#[0-9a-fA-F]{6}$"), opacity=number(0, 1), blend=one_of("normal", "multiply", "screen")),
    obj(semver=pattern(r"^[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}(-(alpha|beta|rc)\.[0-9])?$"), hash=pattern("^[0-9a-f]{40}$"), yanked=FLAG),
    obj(select=many(pattern("^[a-z_]{1,12}$"), 1, 4), table=pattern("^[a-z_]{1,12}$"), limit=whole(1, 1000), descending=FLAG),
    obj(cron=pattern(r"^(\*|[0-5]?[0-9]) (\*|1?[0-9]|2[0-3]) (\*|[1-9]|[12][0-9]|3[01]) (\*|[1-9]|1[0-2]) (\*|[0-6])$"), zone=one_of("UTC", "Europe/Paris")),
    {"type": "object", "patternProperties": {"^[a-z]{1,8}$": number(0, 1)}, "additionalProperties": False, "minProperties": 1, "maxProperties": 3},
    {"type": "object", "patternProperties": {"^x-[a-z]{1,8}$": text(10)}, "additionalProperties": False, "maxProperties": 3},
    {"type": "object", "properties": {"name": text(10)}, "required": ["name"], "patternProperties": {"^is_[a-z]{1,8}$": FLAG}, "additionalProperties": False},
    # calls of functions, one of several kinds
    obj(name=one_of("get_weather"), arguments=obj(optional=["unit"], city=text(16), unit=one_of("celsius", "fahrenheit"))),
    {"anyOf": [obj(tool={"const": "search"}, query=text(30), top=whole(1, 10)), obj(tool={"const": "open"}, url=form("uri")),
               obj(tool={"const": "calc"}, expression=pattern(r"^[0-9]{1,4}( [-+*/] [0-9]{1,4}){1,3}$")), obj(tool={"const": "none"})]},
    many({"oneOf": [obj(op={"const": "add"}, path=pattern("^(/[a-z]{1,6}){1,3}$"), value=text(8)), obj(op={"const": "remove"}, path=pattern("^(/[a-z]{1,6}){1,3}$"))]}, 1, 3),
    {"oneOf": [obj(ok={"const": True}, value=whole(-1000, 1000)), obj(ok={"const": False}, error=text(30))]},
    {"allOf": [{"type": "object", "properties": {"id": whole(1, 9999)}, "required": ["id"]},
               {"type": "object", "properties": {"role": one_of("admin", "user")}, "required": ["role"]}]},
    obj(thought=text(100), action=one_of("ask", "answer", "stop"), input={"anyOf": [text(20), {"type": "null"}]}),
    obj(steps=many(obj(explanation=text(40), output=text(20)), 1, 3), final=text(20)),
    # what holds its own kind
    tree(2, type=one_of("div", "button", "form", "label"), label=text(8)),
    tree(1, name=pattern("^[a-z]{1,8}$"), size=whole(0, 10 ** 6)),
    {"$defs": {"list": obj(head=whole(0, 99), tail={"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]})}, "$ref": "#/$defs/list"},
    {"definitions": {"e": {"anyOf": [whole(0, 99), pattern("^[a-z]$"), obj(op=one_of("+", "-", "*"), left=whole(0, 99), right={"$ref": "#/definitions/e"})]}},
     "$ref": "#/definitions/e"},
    # wide, deep, long
    obj(**{f"field_{i}": one_of("low", "medium", "high") for i in range(12)}),
    obj(optional=[f"q{i}" for i in range(0, 10, 2)], **{f"q{i}": whole(0, 10) for i in range(10)}),
    obj(a=obj(b=obj(c=obj(d=obj(e=obj(f=whole(0, 9))))))),
    obj(matrix={"type": "array", "items": {"type": "array", "items": whole(-9, 9), "minItems": 3, "maxItems": 3}, "minItems": 3, "maxItems": 3}),
]
assert len(SCHEMAS) == 50

_formats = jsonschema.FormatChecker(formats=())
_TIME = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_FULL = {
    "time": _TIME,
    "duration": r"P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)",
    "email": r"[^@\s]+@[^@\s.-][^@\s]*\.[^@\s]*[^@\s.-]",
    "hostname": r"(?!-)[a-zA-Z0-9-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9-]{1,63}(?<!-))*",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": r"[a-zA-Z][a-zA-Z0-9+.-]*:\S+",
}
for _name, _re in _FULL.items():
    _formats.checks(_name)(lambda v, r=re.compile(_re): not isinstance(v, str) or r.fullmatch(v) is not None)
_formats.checks("date", ValueError)(lambda v: not isinstance(v, str) or bool(datetime.date.fromisoformat(v)))
_formats.checks("ipv4", ValueError)(lambda v: not isinstance(v, str) or bool(ipaddress.IPv4Address(v)))
_formats.checks("ipv6", ValueError)(lambda v: not isinstance(v, str) or bool(ipaddress.IPv6Address(v)))


@_formats.checks("date-time", ValueError)
def _date_time(v):
    return not isinstance(v, str) or bool(datetime.date.fromisoformat(v[:10]) and v[10:11] in "Tt" and re.fullmatch(_TIME, v[11:]))


# Decimals, so that 0.07 is a multiple of 0.01.
_judges = [jsonschema.Draft202012Validator(json.loads(json.dumps(s), parse_float=decimal.Decimal), format_checker=_formats) for s in SCHEMAS]


def complaint(i, answer):
    """Why a text does not satisfy schema i; None where it does."""
    try:
        value = json.loads(answer, parse_float=decimal.Decimal)
    except ValueError as e:
        return f"no JSON: {e}"
    found = next(_judges[i].iter_errors(value), None)
    return found and f"{found.json_path}: {found.message}"
