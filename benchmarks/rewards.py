"""The reward of the measured reinforcement learning, cheap and never equal for all answers, for both libraries."""


def even_words(text: str) -> float:
    """Share of words with an even last digit."""
    words = text.split()
    return sum(word[-1] in "02468" for word in words) / max(1, len(words))


def of_trajectory(_task, trajectory) -> float:
    """As our loops call it."""
    return even_words(trajectory.completion)
