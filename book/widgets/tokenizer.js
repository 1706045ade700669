// Text to token ids and back, for byte-level BPE as in the embedded base's tokenizer.json: digits one by one, then words
// with the space before them, then merges of bytes in the order in which they were learned.

const SPACE = "\\t\\n\\v\\f\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORDS = new RegExp(`'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`, "gu");

/** The visible character that stands for each byte in the vocabulary. */
const SIGNS = (() => {
  const plain = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(plain(b) ? b : next++));
})();
const BYTES = new Map(SIGNS.map((sign, b) => [sign, b]));

/** Bytes of a text in UTF-8, as signs. */
const signs = (text) => unescape(encodeURIComponent(text.toWellFormed ? text.toWellFormed() : text)).replace(/[^]/g, (c) => SIGNS[c.charCodeAt(0)]);

/** Text of bytes in UTF-8; what is no character becomes U+FFFD, one for each longest beginning of one. */
function utf8(bytes) {
  let out = "";
  for (let i = 0; i < bytes.length;) {
    const b = bytes[i++], need = b < 0x80 ? 0 : b >= 0xc2 && b < 0xe0 ? 1 : b >= 0xe0 && b < 0xf0 ? 2 : b >= 0xf0 && b < 0xf5 ? 3 : -1;
    if (need < 0) { out += "\ufffd"; continue }
    let code = need ? b & (0x3f >> need) : b, k = 0;
    for (; k < need; k++) {
      const low = k ? 0x80 : b === 0xe0 ? 0xa0 : b === 0xf0 ? 0x90 : 0x80, high = k ? 0xbf : b === 0xed ? 0x9f : b === 0xf4 ? 0x8f : 0xbf;
      if (i >= bytes.length || bytes[i] < low || bytes[i] > high) break;
      code = code << 6 | bytes[i++] & 0x3f;
    }
    out += k === need ? String.fromCodePoint(code) : "\ufffd";
  }
  return out;
}

/** A tokenizer of a model folder. */
export class Tokenizer {
  /** @param {Object<string, any>} file the content of tokenizer.json */
  constructor(file) {
    this.ids = new Map(Object.entries(file.model.vocab));
    this.special = new Map(file.added_tokens.map((t) => [t.content, t.id]));
    this.texts = new Map([...[...this.ids].map(([text, id]) => [id, text]), ...file.added_tokens.map((t) => [t.id, t.content])]);
    this.ranks = new Map(file.model.merges.map((pair, rank) => [(Array.isArray(pair) ? pair : pair.split(" ")).join(" "), rank]));
    this.known = new Map();
  }

  /** Ids of a text in which nothing is special. @param {string} text @returns {number[]} */
  encode(text) {
    const out = [];
    for (const piece of text.match(/\p{N}|\P{N}+/gu) || []) for (const word of piece.match(WORDS) || []) out.push(...this.word(word));
    return out;
  }

  word(word) {
    if (this.known.has(word)) return this.known.get(word);
    let parts = [...signs(word)];
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < best) { best = rank; at = i }
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    const found = parts.map((part) => this.ids.get(part));
    this.known.set(word, found);
    return found;
  }

  /** The text of ids; special tokens as they are spelled. @param {number[]} ids @returns {string} */
  decode(ids) {
    let out = "", bytes = [];
    for (const id of ids) {
      const text = this.texts.get(id);
      if (this.special.has(text)) { out += utf8(bytes) + text; bytes = [] } else for (const sign of text) bytes.push(BYTES.get(sign));
    }
    return out + utf8(bytes);
  }
}
