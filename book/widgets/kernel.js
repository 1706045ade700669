// The matrix product that all of a model's time goes into, as WebAssembly that this file writes itself, instruction by
// instruction, so that there is nothing to assemble and nothing that cannot be read. Where WebAssembly or its vectors are
// missing, `plain` computes the same. Both work on one block of memory and are given places in it, counted in floats:
//
//   c[m, n] (+)= Σ_k a[m, k] · b[k, n]      a at a + m·am + k·ak, b at b + k·bk + n, c at c + m·cm + n; n a multiple of 8

/** The product in JavaScript. @param {Float32Array} f the memory @returns {Product}
 * @typedef {(a: number, am: number, ak: number, b: number, bk: number, c: number, cm: number,
 *   m: number, n: number, k: number, add?: boolean) => void} Product */
export const plain = (f) => (a, am, ak, b, bk, c, cm, m, n, k, add = false) => {
  for (let i = 0; i < m; i++) {
    const row = c + i * cm;
    if (!add) f.fill(0, row, row + n);
    for (let j = 0; j < k; j++) {
      const x = f[a + i * am + j * ak], from = b + j * bk;
      if (x !== 0) for (let o = 0; o < n; o++) f[row + o] += x * f[from + o];
    }
  }
};

// Names of instructions, by the WebAssembly specification (and its 128-bit SIMD extension, prefix 0xfd).
const I32 = 0x7f, V128 = 0x7b, EMPTY = 0x40;
const u = (x) => { const out = []; do { out.push((x & 127) | (x > 127 ? 128 : 0)); x >>>= 7 } while (x); return out };
const s = (x) => { const out = []; for (;;) { const low = x & 127; x >>= 7; if ((x === 0 && !(low & 64)) || (x === -1 && low & 64)) { out.push(low); return out } out.push(low | 128) } };
const get = (i) => [0x20, ...u(i)], set = (i) => [0x21, ...u(i)], constant = (x) => [0x41, ...s(x)];
const ADD = [0x6a], SUB = [0x6b], MUL = [0x6c], GE = [0x4e], EQZ = [0x45];
const simd = (op) => [0xfd, ...u(op)];
const load = (offset) => [...simd(0), 2, ...u(offset)], store = (offset) => [...simd(11), 2, ...u(offset)];
const spread = [...simd(9), 2, 0];                                    // v128.load32_splat
const ZERO = [...simd(12), ...new Array(16).fill(0)], TIMES = simd(230), PLUS = simd(228);
const step = (local, by) => [...get(local), ...by, ...ADD, ...set(local)];
/** while (!stop) { body } */
const loop = (stop, body) => [0x02, EMPTY, 0x03, EMPTY, ...stop, 0x0d, 1, ...body, 0x0c, 0, 0x0b, 0x0b];

// Parameters, in bytes where they are places or distances; then the locals.
const [A, AM, AK, B, BK, C, CM, M, N, K, ADDING, J, T, PA, PB, PC, X] = Array.from({ length: 17 }, (_, i) => i);
const SUMS = 17;                                                       // v128 locals: 8 sums, two of b, one of a
const address = (base, stride, i) => i ? [...get(base), ...get(stride), ...constant(i), ...MUL, ...ADD] : get(base);

/** `rows` rows of c, all columns: eight columns at a time stay in registers while k runs. */
function rows(count) {
  const left = SUMS + 8, right = SUMS + 9, scalar = SUMS + 10;
  const each = (f) => Array.from({ length: count }, (_, i) => f(i)).flat();
  const begin = [
    ...get(ADDING), ...EQZ, 0x04, EMPTY, ...each((i) => [...ZERO, ...set(SUMS + 2 * i), ...ZERO, ...set(SUMS + 2 * i + 1)]),
    0x05, ...each((i) => [...address(PC, CM, i), ...load(0), ...set(SUMS + 2 * i), ...address(PC, CM, i), ...load(16), ...set(SUMS + 2 * i + 1)]), 0x0b,
  ];
  const inner = [
    ...get(PB), ...load(0), ...set(left), ...get(PB), ...load(16), ...set(right),
    ...each((i) => [
      ...address(PA, AM, i), ...spread, ...set(scalar),
      ...get(scalar), ...get(left), ...TIMES, ...get(SUMS + 2 * i), ...PLUS, ...set(SUMS + 2 * i),
      ...get(scalar), ...get(right), ...TIMES, ...get(SUMS + 2 * i + 1), ...PLUS, ...set(SUMS + 2 * i + 1),
    ]),
    ...step(PA, get(AK)), ...step(PB, get(BK)), ...step(T, constant(1)),
  ];
  const end = each((i) => [...address(PC, CM, i), ...get(SUMS + 2 * i), ...store(0), ...address(PC, CM, i), ...get(SUMS + 2 * i + 1), ...store(16)]);
  return [
    ...constant(0), ...set(J),
    ...loop([...get(J), ...get(N), ...GE], [
      ...get(B), ...get(J), ...constant(4), ...MUL, ...ADD, ...set(PB), ...get(C), ...get(J), ...constant(4), ...MUL, ...ADD, ...set(PC),
      ...get(A), ...set(PA), ...constant(0), ...set(T),
      ...begin, ...loop([...get(T), ...get(K), ...GE], inner), ...end, ...step(J, constant(8)),
    ]),
    ...step(A, [...get(AM), ...constant(count), ...MUL]), ...step(C, [...get(CM), ...constant(count), ...MUL]),
    ...get(M), ...constant(count), ...SUB, ...set(M),
  ];
}

/** The bytes of a module that imports a memory and exports `product`. @returns {Uint8Array} */
export function bytes() {
  const section = (id, content) => [id, ...u(content.length), ...content];
  const name = (text) => [text.length, ...[...text].map((x) => x.charCodeAt(0))];
  const code = [
    ...loop([...get(M), ...constant(4), 0x48], rows(4)),               // i32.lt_s: fewer than four rows are left
    ...loop([...get(M), ...constant(1), 0x48], rows(1)), 0x0b,
  ];
  const body = [2, 6, I32, 11, V128, ...code];
  return new Uint8Array([
    0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, 11, ...new Array(11).fill(I32), 0]),
    ...section(2, [1, ...name("e"), ...name("m"), 2, 0, 1]),
    ...section(3, [1, 0]),
    ...section(7, [1, ...name("product"), 0, 0]),
    ...section(10, [1, ...u(body.length), ...body]),
  ]);
}

/**
 * Memory for so many floats, and the product on it: the kernel, or plain JavaScript where it cannot be had.
 * @param {number} floats @param {boolean} [kernel] @returns {{f: Float32Array, product: Product, fast: boolean}}
 */
export function workspace(floats, kernel = true) {
  if (kernel && typeof WebAssembly === "object") {
    try {
      const memory = new WebAssembly.Memory({ initial: Math.ceil(floats / 16384) + 1 });
      const { product } = new WebAssembly.Instance(new WebAssembly.Module(bytes()), { e: { m: memory } }).exports;
      return {
        f: new Float32Array(memory.buffer), fast: true,
        product: (a, am, ak, b, bk, c, cm, m, n, k, add = false) => product(4 * a, 4 * am, 4 * ak, 4 * b, 4 * bk, 4 * c, 4 * cm, m, n, k, add ? 1 : 0),
      };
    } catch { /* no vectors here: the plain one */ }
  }
  const f = new Float32Array(floats);
  return { f, product: plain(f), fast: false };
}
