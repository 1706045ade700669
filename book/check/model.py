"""The model in the page against the library, in the browser itself: logits with the kernel, and steps of training."""

from typing import Any

MOST_APART = 1e-4
LEAST_STEPS = 1.0
"""A second, of training."""

LOGITS = """async ([tokens, root]) => {
  const { Model, tensors } = await import(`${root}_static/widgets/lm.js`);
  const get = (name, kind) => fetch(`${root}_static/models/base/${name}`).then((answer) => answer[kind]());
  const weights = tensors(await get("model.safetensors", "arrayBuffer"));
  const model = new Model(await get("config.json", "json"), weights, { slots: 1, length: 64, rows: 64 });
  model.forward(tokens, tokens.map(() => 0), tokens.map((_, i) => i));
  return [model.fast, [...model.logitsOf(tokens.map((_, i) => i))]];
}"""
STEPS = """async (root) => {
  const { Model, tensors } = await import(`${root}_static/widgets/lm.js`);
  const { Trainer } = await import(`${root}_static/widgets/trainer.js`);
  const get = (name, kind) => fetch(`${root}_static/models/adder/${name}`).then((answer) => answer[kind]());
  const weights = tensors(await get("model.safetensors", "arrayBuffer"));
  const how = { slots: 64, length: 28, rows: 64 * 28, keep: true };
  const trainer = new Trainer(new Model(await get("config.json", "json"), weights, how)), start = performance.now();
  for (let n = 0; n < 5; n++) trainer.step("4975", { size: 8, temperature: 1, normalise: "std", average: "answer" }, n);
  return 5000 / (performance.now() - start);
}"""


def model(page: Any, address: str) -> tuple[str, list[str]]:
    """What was seen, in words; and what is wrong. page: any page of the book, open."""
    import torch

    from posttrain.models.load import load

    base = load("base")
    tokens = base.tokenizer.encode("Q: What is 47+85?\nA: 7+5=12 c1, 4+8+1=13, so 132.\n")
    fast, found = page.evaluate(LOGITS, [tokens, address])
    with torch.inference_mode():
        want = base.model.logits(base.model(torch.tensor([tokens])))[0]
    apart = float((torch.tensor(found).view_as(want) - want).abs().max())
    steps = page.evaluate(STEPS, address)
    problems = [] if fast else ["the model in the page runs without its kernel"]
    problems += [f"its logits are {apart:.1e} off, {MOST_APART:g} at most"] if not apart <= MOST_APART else []
    problems += [f"{steps:.2f} training steps a second, {LEAST_STEPS:g} at least"] if steps < LEAST_STEPS else []
    return f"model in the page: logits {apart:.1e} off, {steps:.1f} training steps a second", problems
