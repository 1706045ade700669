// The task of section 23, sums of four digits: how it is asked, and how an answer is graded.

export const MOST = 20;   // tokens of an answer, its end included
export const ANSWERS = 64; // of one training step, in groups of G
const VOCABULARY = ["<pad>", "<end>", ..."0123456789", "+", "=", ",", ";"];
export const END = 1;

/** Ids of "4+9+7+5=". @param {string} digits such as "4975" */
export const asked = (digits) => [...[...digits].join("+"), "="].map((c) => VOCABULARY.indexOf(c));

/** Text of ids; the end of an answer is not shown. @param {number[]} tokens */
export const text = (tokens) => tokens.filter((t) => t !== END).map((t) => VOCABULARY[t]).join("");

/** A problem drawn from one uniform number. @param {number} u */
export const problem = (u) => [729, 81, 9, 1].map((p) => 1 + Math.floor(u * 6561 / p) % 9).join("");

/** The verifier: 1 if the answer ended and its last number is the sum, else 0. @param {string} digits @param {number[]} tokens */
export function verdict(digits, tokens) {
  const right = [...digits].reduce((a, b) => a + +b, 0), said = text(tokens).split(",").at(-1);
  return tokens.at(-1) === END && said === String(right) ? 1 : 0;
}
