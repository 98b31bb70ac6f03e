"""Strings that try to become markup, script, formulas, terminal commands, or nothing at all; and models that speak them."""

from transformers import PreTrainedTokenizerFast

MARKUP = [
    # script; pwned() is what the browser tests count
    "<script>pwned()</script>",
    "</script><script>pwned()</script>",
    "</script\n><script>pwned()</script>",
    "</SCRIPT ><script>pwned()</script>",
    "<SCRIPT SRC=http://evil.invalid/x.js></SCRIPT>",
    "<ScRiPt>pwned()</sCrIpT>",
    "<scr<script>ipt>pwned()</script>",
    "<script\x0b>pwned()</script>",
    "<script\x0c>pwned()</script>",
    "<script/x>pwned()</script>",
    "<script\x00>pwned()</script>",
    "<\x00script>pwned()</script>",
    "<script type=module>pwned()</script>",
    "<script async src=data:text/javascript,pwned()></script>",
    "<script>/*</script><script>*/pwned()//</script>",
    "<<script>pwned();//<</script>",
    "\uff1cscript\uff1epwned()\uff1c/script\uff1e",
    "+ADw-script+AD4-pwned()+ADw-/script+AD4-",
    "\xbcscript\xbepwned()\xbc/script\xbe",
    "<svg><script>pwned()</script></svg>",
    "<svg><script xlink:href=data:,pwned() /></svg>",
    "<noscript><p title=\"</noscript><img src=x onerror=pwned()>\">",
    "<template><script>pwned()</script></template>",
    # handlers
    "<img/src='x'/onerror=pwned()>",
    "<img/src=x/onerror=pwned()>",
    "<img src=x onerror='pwned()'>",
    '<IMG SRC="x" ONERROR="pwned()">',
    "<img src=x\nonerror\n=pwned()>",
    "<img src=x onerror=&#112;wned()>",
    "<img src=x:x onerror=\\u0070wned()>",
    "<image src=x onerror=pwned()>",
    "<svg/onload=pwned()>",
    "<svg onload\r\n=pwned()>",
    "<svg><animate onbegin=pwned() attributeName=x dur=1s>",
    "<svg><set onbegin=pwned() attributeName=x>",
    "<svg><a xlink:href=javascript:pwned()><text y=9>x</text></a></svg>",
    "<svg><use href=\"data:image/svg+xml,<svg id='x' xmlns='http://www.w3.org/2000/svg'><script>pwned()</script></svg>#x\">",
    "<svg><foreignObject><body onload=pwned()></foreignObject></svg>",
    "<body onload=pwned()>",
    "<details open ontoggle=pwned()>",
    "<input autofocus onfocus=pwned()>",
    "<select autofocus onfocus=pwned()>",
    "<textarea autofocus onfocus=pwned()>",
    "<video><source onerror=pwned()></video>",
    "<audio src=x onerror=pwned()>",
    "<marquee onstart=pwned()>",
    "<div onpointerover=pwned()>over</div>",
    "<p style=animation:x onanimationstart=pwned()>",
    "<xss id=x tabindex=1 onfocus=pwned()>",
    "<isindex type=image src=1 onerror=pwned()>",
    # links, frames, and what fetches
    "<img src=http://evil.invalid/pixel.png>",
    "<img srcset='http://evil.invalid/a 2x'>",
    "<iframe src=javascript:pwned()></iframe>",
    "<iframe srcdoc='<script>parent.pwned()</script>'>",
    "<iframe srcdoc=\"&lt;script&gt;parent.pwned()&lt;/script&gt;\">",
    "<iframe src=http://evil.invalid>",
    "<frameset onload=pwned()>",
    "<object data=javascript:pwned()>",
    "<object data=data:text/html,<script>pwned()</script>>",
    "<embed src=javascript:pwned()>",
    "<a href=javascript:pwned()>click</a>",
    "<a href=\"java\tscript:pwned()\">click</a>",
    "<a href=&#x6A;avascript:pwned()>click</a>",
    "<a href=data:text/html,<script>pwned()</script>>click</a>",
    '<a href="http://evil.invalid">link</a>',
    "<a href='//evil.invalid' target='_blank'>link</a>",
    "<form action=http://evil.invalid><button>",
    "<button formaction=javascript:pwned()>press</button>",
    "<input type=image src=http://evil.invalid/x.png>",
    "<link rel=stylesheet href=http://evil.invalid/x.css>",
    "<link rel=prefetch href=http://evil.invalid>",
    "<link rel=import href=http://evil.invalid>",
    "<meta http-equiv=refresh content=0;url=http://evil.invalid>",
    "<meta http-equiv=\"refresh\" content=\"0;url=javascript:pwned()\">",
    "<meta http-equiv=Content-Security-Policy content=\"script-src *\">",
    "<base href=http://evil.invalid/>",
    "<base target=_blank>",
    "<table background=http://evil.invalid/x.png>",
    "<video poster=http://evil.invalid/x.png>",
    # style
    "<style>*{display:none}</style>",
    "<style>@import 'http://evil.invalid/x.css';</style>",
    "</style><script>pwned()</script>",
    "<p style=\"background:url(http://evil.invalid/x.png)\">",
    "<div style=\"position:fixed;inset:0;background:red\">",
    "<xmp><p title=\"</xmp><svg/onload=pwned()>\">",
    # mutation and foreign content
    '<math><mtext></mtext><mglyph><svg><mtext><textarea><path id="</textarea><img onerror=pwned() src=1>">',
    "<math><mi//xlink:href=\"javascript:pwned()\">",
    "<math href=javascript:pwned()>CLICK</math>",
    "<svg></p><style><a id=\"</style><img src=1 onerror=pwned()>\">",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=pwned()>",
    "<table><td><svg><desc><table><tr><td><img src=x onerror=pwned()>",
]  # fmt: skip

BREAKOUTS = [
    '" onmouseover="pwned()',
    "' onmouseover='pwned()",
    "x onmouseover=pwned() y=",
    '" autofocus onfocus=pwned() x="',
    "`${pwned()}`",
    "${pwned()}",
    "#{pwned()}",
    "{{pwned()}}",
    "{% raw %}",
    "<%= pwned() %>",
    "<?php pwned(); ?>",
    "{{constructor.constructor('pwned()')()}}",
    "[[${pwned()}]]",
    "\\u003cimg src=x onerror=pwned()\\u003e",
    "\\x3cscript\\x3epwned()\\x3c/script\\x3e",
    "\\",
    "\\\\",
    "\\'",
    '\\"',
    '");pwned();//',
    "'-pwned()-'",
    "';pwned()//",
    "*/pwned()/*",
    "//",
    "javascript:pwned()",
    "data:text/html,<script>pwned()</script>",
    "url(javascript:pwned())",
    "expression(pwned())",
    "</title><script>pwned()</script>",
    "</textarea><script>pwned()</script>",
    "</bdi></td></table><script>pwned()</script>",
    "</div></details><svg/onload=pwned()>",
    "</svg><img src=x onerror=pwned()>",
    "<!--",
    "-->",
    "--!>",
    "<!-->",
    "--><script>pwned()</script>",
    "<!--<script>",
    "<!--[if IE]><script>pwned()</script><![endif]-->",
    "]]>",
    "]]><script>pwned()</script>",
    "<![CDATA[<script>pwned()</script>]]>",
    "<!DOCTYPE html>",
    "<?xml version='1.0'?>",
    "<!ENTITY x SYSTEM 'http://evil.invalid'>",
    "%{z} %{customdata[0]} %{x}",
    "%{y:.3f}<extra>x</extra>",
    "<extra></extra>",
    "%s %d %(name)s",
    "{0} {name!r}",
    "$x^2$",
    "$\\text{a}$",
    "$$\\href{javascript:pwned()}{x}$$",
    "\\(x\\)",
    "\\unicode{x3c}script\\unicode{x3e}",
    "\\href{javascript:pwned()}{x}",
    "__proto__",
    "constructor",
    "toString",
    "NaN",
    "null",
    "undefined",
    "Infinity",
    "true",
    '{"a": 1}',
    "[1]",
]

ENTITIES = [
    "&lt;img src=x onerror=pwned()&gt;",
    "&amp;lt;",
    "&lt",
    "&#60;script&#62;pwned()&#60;/script&#62;",
    "&#x3c;script&#x3e;pwned()&#x3c;/script&#x3e;",
    "&#0000060script&#0000062pwned()",
    "&ltscript&gt",
    "&quot; onload=pwned() &quot;",
    "&NewLine;&Tab;&colon;&lpar;",
    "&nbsp;",
    "&zwj;",
    "&#0;",
    "&#xD800;",
    "&",
    "&&",
    "&;",
    "<",
    ">",
    "<>",
    "</>",
    "</",
]

SWALLOWED = ["<s>", "</s>", "<bos>", "<|endoftext|>", "<unk>", "<0x0A>", "<b>bold</b>", "<br>", "<i>", "<sub>2</sub>", "<sup>",
             "<span style='color:red'>red</span>", "[INST]", "[MASK]", "##ing", "Ġthe", "�", "◌"]  # fmt: skip

INVISIBLE = [
    "", " ", "  ", " Oslo", "Oslo ", "a  b", "\n", "\n\n", "\r", "\t", "\\n", "\\\n", "\t\r\n", "\x00", "a\x00b", "\x01", "\x07",
    "\x08\x08\x08", "\x0b", "\x0c", "\x7f", "\x85", "\x9b31m", "\xa0", "\xad", "\u034f", "\u061c", "\u1680", "\u180e", "\u2003",
    "\u3000", "\u200b", "a\u200bb", "\u200c", "\u200d", "\u200e", "\u200f", "\ufeff", "\u2028", "\u2029", "a\u2028b", "\u2060",
    "\u2061", "\u2800", "\u3164", "\uffa0", "\ufff9x\ufffa", "\uffff", "\ue000", "\ufe0f", "\U000e0041", "\U000e0101", "\U0010ffff",
    "<\u2060img src=x onerror=pwned()>", "\u202etxt.exe", "\u202d", "\u202a\u202b\u202c", "\u2066\u2067abc", "\u2068", "\u2069",
    "\u202e</bdi>\u202c", "\ud800", "\udfff x", "\udc80", "a\udcffb", "\udc00\ud800", "<\ud800script>pwned()</script>",
    "\u0301", "\u20dd", "a" + "\u0301" * 40, "Z" + "\u0351\u0310\u034a\u0313\u0346" * 9, "\u0e49" * 30, "⟨empty⟩", "␣", "·", "…",
]  # fmt: skip

SCRIPTS = [
    "שלום", "مرحبا 12", "שלום<script>", "日本語", "हिन्दी", "ไทย", "𝔘𝔫𝔦", "Ａ", "ﷺ", "👩\u200d👩\u200d👧", "❤\ufe0f", "🏳\ufe0f\u200d🌈", "👍🏽",
    "🇳🇴", "1\ufe0f\u20e3", "\U0001f9d1\u200d" * 20, "w" * 40, "w" * 3000, "W" * 200 + " " * 50, "<img src=x onerror=pwned()>" * 40,
    "&lt;" * 300, "x" * 5000,
]  # fmt: skip

TERMINAL = ["\x1b[31m", "\x1b[2J\x1b[H", "\x1b]0;pwned\x07", "\x1b]8;;http://evil.invalid\x1b\\x", "\x1b[6n", "\x9b2J", "\x1bP+q\x1b\\",
            "\rtl-backward: done", "a\x1b[1A\x1b[2Kb", "\x0e\x0f", "; rm -rf ~", "$(touch x)", "`id`", "| cat", "../../x", "--json"]  # fmt: skip

FORMULAS = [
    "=1+1", "+1", "-1", "-1.5", "@SUM(A1)", " =1+1", "\t=1+1", "\r=1+1", "\n=1+1", "\xa0=1+1", "\ufeff=1+1", "\x00=1+1", "＝1+1", "＋1", "－1", "＠A",
    " =cmd|'/c calc'!A1", "=cmd|'/c calc'!A1", '=HYPERLINK("http://evil.invalid")', "-2+3+cmd|'/c calc'!A1", "=IMPORTXML(A1)",
    "'=1", '"=1+1', 'a","=1+1', "a\n=1+1", "a,=1", "%0A=1+1", "+", "-", "=", "@",
]  # fmt: skip

TOKENS = tuple(dict.fromkeys([*MARKUP, *BREAKOUTS, *ENTITIES, *SWALLOWED, *INVISIBLE, *SCRIPTS, *TERMINAL, *FORMULAS]))
"""All of them, each once."""


class HostileTokenizer(PreTrainedTokenizerFast):
    """Reads plain words and writes these strings: token i is the i-th."""

    def decode(self, token_ids, **options):
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        return "".join(TOKENS[i] for i in ids)

    def batch_decode(self, sequences, **options):
        return [
            self.decode([row] if getattr(row, "ndim", 1) == 0 or isinstance(row, int) else row) for row in sequences
        ]

    def convert_ids_to_tokens(self, ids, **options):
        return (
            TOKENS[int(ids)] if isinstance(ids, int) or getattr(ids, "ndim", 1) == 0 else [TOKENS[int(i)] for i in ids]
        )


def hostile_model(n_ctx: int = 512, world: str | None = None):
    """A small random model with these strings for a vocabulary, in a world or the first there is."""
    from models import build, tokenizer, worlds

    world = world or worlds()[0]
    size = (
        {"d_vocab": len(TOKENS), "n_ctx": n_ctx}
        if world == "hooked"
        else {"vocab_size": len(TOKENS), "n_positions": n_ctx}
    )
    model = build(world, **size)
    words = tokenizer()
    words.__class__ = HostileTokenizer
    words.unk_token = words.bos_token  # as GPT-2's: unknown words need no warning
    model.tokenizer = words
    return model
