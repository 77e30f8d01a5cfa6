"""A text on which encoders differ if they differ at all: what each tokenizer is tried on before it is used."""

from __future__ import annotations

__all__ = ["PROBE"]

_SCRIPTS = (
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX! camelCase snake_case HTTPServer XMLHttpRequest "
    "don't DON'T I'm I'M you're YOU'RE we've WE'VE she'll SHE'LL he'd HE'D it's IT'S 'tis o'clock'S 's'S 'ſ doeſ'ſ ’s",
    "Köln ist schön, Straße, ÀÉÎõü, Ǆǅǆ, İıſ, ﬁﬂ, Ⅻ ⅷ, ª º ʰ ʷ",
    "Ελληνικά ΣΑΣ ς; Русский ТЕКСТ ё; Հայերեն; ქართული ᲥᲐᲠᲗᲣᲚᲘ",
    "東京は2024年も人口1,396万人です。ひらがなカタカナ・ｶﾀｶﾅ゛゜ー 々〆〇 𠮷野家 㐀䶵 한국어 ᄒ\u1161ᆫ",
    "中文字符,标点。「」",
    "ภาษาไทยน้ำ กำ ༄༅ བོད་ မြန်မာ ភាសាខ្មែរ ລາວ",
    "नमस्ते दुनिया क्षि हिन्दी বাংলা কোৌ ਪੰਜਾਬੀ ગુજરાતી தமிழ்கொ తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
    "العربيّة مُحَمَّد ـــ فارسی می\u200cخواهم ۱۲۳ עִבְרִית שָׁלוֹם ܣܘܪܝܝܐ ދިވެހި አማርኛ ꦗꦮ ᠮᠣᠩᠭᠣᠯ ᏣᎳᎩ ꮳꮃꭹ 𐐀𐐨 𞤀𞤢 ߒߞߏ",
    "e\u0301 o\u0308\u0304 A\u030a q\u0323\u0307 q\u0307\u0323 \u0344 \u212b \u2126 \u1e9b\u0323 \u0958 "
    "a\u0301\u0327 ￼ \ufeff",
)
_NUMBERS = (
    "0 12 123 1234 12345678901234567890 3.14159e-10 0x1F600 1,000,000 1_000 007 ٠١٢٣٤٥٦٧٨٩ ०१२३४५६७८९ ๐๑๒๓๔๕ 〇一二 "
    "½⅓¾ ²³¹ ①②③ Ⅷ 𝟏𝟐𝟑𝟜 𐒠𐒡 𑁦𑁧 １２３４５ №5 5th 5€ $5.00 5'5",
)
_SPACES = (
    "a b  c   d    e     f      g"
    + " " * 17
    + "h"
    + " " * 70
    + "i\tj\t\tk \t l\t \tm\n\nn \n o\n \n\n p\r\nq\r\n\r\nr\rs \r t",
    "\u00a0a \u00a0 b\u1680c\u2000\u2001\u2002\u2003 d\u2009e"
    "\u200af\u2028g\u2029h\u202f i\u205fj\u3000\u3000k\u0085l\u000bm\u000cn"
    "\u001co\u001dp\u001eq\u001fr\u180es\u200bt\u2060u\ufeffv",
    "end of line \nend  \n  next\n\tindented\n\t\tmore\n    four\n        eight\n",
    "   \n\n   \n",
)
_SIGNS = (
    "Hello, world! (a) [b] {c} <d> \"e\" 'f' `g` -h- _i_ *j* /k/ \\l\\ |m| ~n~ ^o^ =p= +q+ @r #s $t %u &v ;w :x ?y !z",
    "!!! ... --- === *** ### ??!!\n\n;\n);\n}\r\n\r\n));}\n\n.\n,\r\n\"\n'\n ...\n ...\r\n/\n//\n /\n+\n €\n。\n、\n",
    "“curly” ‘quotes’ – — … • ‣ € £ ¥ ₿ © ® ™ § ¶ † ‡ ° ± × ÷ ≠ ≤ ∞ ∑ √ ∫ → ← ⇒ ♥ ♪ ✓ ☃ ﹏ ＿ ＃ ￥ ‿",
    "\U0001f600\U0001f44d\U0001f3fd\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 "
    "\U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5 \u2764\ufe0f 1\ufe0f\u20e3 \U0001f937\U0001f3ff\u200d\u2640\ufe0f x😀y ",
    "nul\0 bell\a back\b esc\x1b del\x7f c1\x80\x9f soft\xadhyphen "
    "\ue000\uf8ff \U000f0000\U0010fffd \ufdd0\ufffe\uffff \ufffd",
    "<|endoftext|> <s> </s> <unk> <pad> [CLS] [MASK] <0x0A> ▁a▁▁b▁ Ġthe Ċ Âł ĉĉ "
    "## ##ing </w> <|fim_begin|> <｜end▁of▁sentence｜>",
)
_CODE = (
    'def f(x: int) -> str:\n    """Doc."""\n    if x != 0x10 and not x:\n        return f"{x!r:>10}"\n\n    # comment\n'
    "\treturn self.__init__(**kw)[::-1]\n",
    '#include <stdio.h>\nint main(void) {\r\n\tfor (int i = 0; i < 10; ++i) { printf("%d\\n", a[i]->b.c); }\r\n}\n',
    '{"key": [1, 2.5e3, null], "path": "C:\\\\dir\\\\file.txt", "url": "https://example.org/a?b=c&d=%20#e"}\n',
    "\\frac{1}{2} \\sum_{i=0}^{n} x_i^2 $$ a/b //c /d/e\n| a | b |\n|---|---|\n* item\n1. one\n",
)

_TEXTS = (*_SCRIPTS, *_NUMBERS, *_SPACES, *_SIGNS, *_CODE)

#: the documents of the probe, some KB: each text, each character by itself, nothing, and all without a break
PROBE: tuple[str, ...] = (*_TEXTS, *sorted({*"".join(_TEXTS)}), "", "".join(_TEXTS))
