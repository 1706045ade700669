"""A scalar head on a decoder: reward models, process reward models and critics.

The same module as Hugging Face's `*ForSequenceClassification` with one label, and stored under its names, so that a
reward model made here opens there. Which token's value counts is the caller's choice: the last one of an answer for a
reward model, every one for a critic.
"""

import torch
from torch import Tensor, nn

from posttrain.models.attention import Attention
from posttrain.models.decoder import Decoder


class ScalarModel(nn.Module):
    """A decoder whose hidden states are mapped to one number each: value_t = w · h_t."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder
        self.score = nn.Linear(decoder.cfg.hidden_size, 1, bias=False, device=decoder.embed_tokens.weight.device)
        with torch.no_grad():
            self.score.weight.zero_()  # every answer starts with reward 0: no order until comparisons have been seen
            if decoder.lm_head is not None:
                decoder.lm_head = None  # no logits are made; keeping them would train and store dead weights

    @property
    def cfg(self):
        """The decoder's ModelConfig."""
        return self.decoder.cfg

    def flat(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states [M, D] of flat tokens; see `Decoder.flat`."""
        return self.decoder.flat(tokens, positions, attention)

    def values(self, hidden: Tensor) -> Tensor:
        """[M, D] -> [M]."""
        return self.score(hidden).squeeze(-1)
