// What a group makes of its rewards: advantages, and the weight of each token in the loss of a step.

/**
 * Advantages of one group. @param {number[]} rewards
 * @param {"std"|"none"} normalise std: (r - mean) / (std + 1e-4), the sample's std (GRPO); none: r - mean (Dr. GRPO)
 */
export function advantages(rewards, normalise = "std") {
  const n = rewards.length, mean = rewards.reduce((a, b) => a + b, 0) / n;
  if (n < 2 || rewards.every((r) => r === rewards[0])) return rewards.map(() => 0);
  const std = Math.sqrt(rewards.reduce((s, r) => s + (r - mean) ** 2, 0) / (n - 1));
  return rewards.map((r) => (r - mean) / (normalise === "std" ? std + 1e-4 : 1));
}

/**
 * Weight of each token of each answer in the loss of a step. @param {number[]} lengths of the answers
 * @param {"answer"|"token"|"constant"} average answer: 1/(B·length); token: 1/(all tokens); constant: 1/(B·horizon)
 * @param {number} [horizon]
 */
export function tokenWeights(lengths, average, horizon = 1) {
  const all = lengths.reduce((a, b) => a + b, 0), b = lengths.length;
  return lengths.map((n) => average === "answer" ? 1 / (b * n) : average === "token" ? 1 / all : 1 / (b * horizon));
}
