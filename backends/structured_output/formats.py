"""The formats of JSON Schema as regular expressions: every text that one lets through is of the format.

Narrower than their standards, so that an answer is valid for every reader: no 29th of February (no expression knows the leap
years), ASCII only, nothing that JSON has to escape, numbers of nine digits, names of hosts well within their limits.
What may be left out is written `(|...)`: of `(/a*)?` xgrammar 0.2.8 takes the `a` without its slash.
"""

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LONG, _SHORT = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])", "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_DATE = f"{_YEAR}-({_LONG}|{_SHORT}|02-(0[1-9]|1[0-9]|2[0-8]))"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](|\.[0-9]{1,9})(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_COUNT = "[0-9]{1,9}"
_DAYS = f"({_COUNT}Y(|{_COUNT}M(|{_COUNT}D))|{_COUNT}M(|{_COUNT}D)|{_COUNT}D)"
_HOURS = f"T({_COUNT}H(|{_COUNT}M(|{_COUNT}S))|{_COUNT}M(|{_COUNT}S)|{_COUNT}S)"

_LABEL = "[A-Za-z0-9](|[A-Za-z0-9-]{0,29}[A-Za-z0-9])"
_HOST = rf"({_LABEL}\.){{0,4}}[A-Za-z][A-Za-z0-9]{{0,15}}"
"""At most 176 of the 253 characters. The last label begins with a letter: else it might be half an address."""
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_HEX = "[0-9A-Fa-f]"
_GROUP = f"{_HEX}{{1,4}}"
_SHORTENED = "|".join(f"({_GROUP}:){{1,{left}}}(:{_GROUP}){{1,{7 - left}}}" for left in range(1, 7))
_IPV6 = f"(({_GROUP}:){{7}}{_GROUP}|{_SHORTENED}|({_GROUP}:){{1,7}}:|:(:{_GROUP}){{1,7}}|::)"

_PLAIN, _ENCODED = "A-Za-z0-9._~!$&'()*+,;=", f"%{_HEX}{{2}}"
_PATH = f"([{_PLAIN}:@/-]|{_ENCODED})*"
_SEGMENT = f"([{_PLAIN}@-]|{_ENCODED})+"
"""The first one of a relative path: a colon would make a scheme of it."""
_AUTHORITY = "//(|[A-Za-z0-9._~-]+@)[A-Za-z0-9]+([.-][A-Za-z0-9]+)*(|:[0-9]{1,4})"
_REST = rf"(|\?([{_PLAIN}:@/?-]|{_ENCODED})*)(|#([{_PLAIN}:@/?-]|{_ENCODED})*)"
_AFTER_AUTHORITY = f"{_AUTHORITY}(|/{_PATH})"
_ROOTLESS = f"([{_PLAIN}:@-]|{_ENCODED}){_PATH}"
_ROOTED = f"/(|{_ROOTLESS})"
_URI = f"[A-Za-z][A-Za-z0-9+.-]*:({_AFTER_AUTHORITY}|{_ROOTED}|{_ROOTLESS}){_REST}"
_RELATIVE = f"(|{_AFTER_AUTHORITY}|{_ROOTED}|{_SEGMENT}(|/{_PATH})){_REST}"
_LITERAL = f"([A-Za-z0-9._~!$&()*+,;=:@/?#-]|{_ENCODED})"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*(|:[1-9][0-9]{0,2}|\*)"
_EXPRESSION = rf"\{{[+#./;?&]?{_VARIABLE}(,{_VARIABLE})*\}}"
_POINTER = r"(|/([ !#-.0-\[\]-}]|/|~[01])*)"

# In a relative pointer no digit follows a 0: `jsonschema` takes none.
PATTERNS = {
    name: f"^{pattern}$"
    for name, pattern in {
        "date": _DATE,
        "time": _TIME,
        "date-time": f"{_DATE}T{_TIME}",
        "duration": f"P({_DAYS}(|{_HOURS})|{_HOURS}|{_COUNT}W)",
        "email": rf"{_ATOM}(|\.{_ATOM})@{_HOST}",
        "uuid": f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
        "ipv4": _IPV4,
        "ipv6": _IPV6,
        "hostname": _HOST,
        "uri": _URI,
        "uri-reference": f"({_URI}|{_RELATIVE})",
        "uri-template": f"{_LITERAL}*({_EXPRESSION}{_LITERAL}*)*",
        "json-pointer": _POINTER,
        "relative-json-pointer": f"(0|[1-9]{{1,8}}0?)(#|{_POINTER})",
    }.items()
}
