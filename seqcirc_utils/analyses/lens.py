"""The logit lens at the end of the prompt, before and after each attention and MLP."""

from dataclasses import dataclass

import torch

from seqcirc_utils.analyses.observation import Observation
from seqcirc_utils.models.capabilities import logits, require
from seqcirc_utils.models.devices import double
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts.prompts import Prompts


@dataclass(frozen=True)
class Lens:
    """Logit lens at the end, before each attention and each MLP and after the last block.

    Attributes:
        next: Probability of the answer ``[2 * layer + 1, n]``.
        last: Probability of the last member.
        top: What is on top of the whole vocabulary: 1 the answer, -1 the last member, 0 neither.
    """

    next: torch.Tensor
    last: torch.Tensor
    top: torch.Tensor

    def steps(self, part: str) -> dict[str, torch.Tensor]:
        """Change across each ``attention``, ``mlp`` or ``block``: values ``[layer, n]``.

        ``next`` and ``last``: change of the probability. ``overtakes``: the answer passes the last
        member, for good. ``switches``: the last member is on top before, the answer after.
        """
        start, end = {"attention": (0, 1), "mlp": (1, 2), "block": (0, 2)}[part]
        before = torch.arange(start, len(self.next) - 1, 2)  # places [layer]
        after = before + end - start
        # Whether the answer is ahead here and ever after: [2 * layer + 1, n].
        ahead = (self.next > self.last).int().flip(0).cummin(0).values.flip(0).bool()
        return {
            "next": self.next[after] - self.next[before],
            "last": self.last[after] - self.last[before],
            "overtakes": (~ahead[before] & ahead[after]).float(),
            "switches": ((self.top[before] == -1) & (self.top[after] == 1)).float(),
        }


@torch.no_grad()
def lens(model: Model, observation: Observation, prompts: Prompts) -> Lens:
    """Read the stream at the end, everywhere, through the final norm and the unembedding.

    Raises:
        UserError: for a model whose logits are made in another way, or whose layers do not add
            what attention and MLP write.
    """
    require(model, "readout between", "a logit lens does not apply.")
    ids = torch.stack([prompts.answer_ids, prompts.last_ids], -1).to(model.device)  # [n, 2]
    read = [readout(model, stream, ids) for stream in observation.end]
    probabilities, first = (torch.stack(parts) for parts in zip(*read, strict=True))
    top = first[..., 0].int() - first[..., 1].int()
    return Lens(probabilities[..., 0], probabilities[..., 1], top)


@torch.no_grad()
def readout(
    model: Model, stream: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read streams through the final norm and the unembedding.

    The sum over the vocabulary is taken in double precision: in single precision a softmax over
    49,152 tokens is off by 1.6e-4.

    Args:
        model: A model whose logits are made so.
        stream: Residual streams ``[…, d_model]``.
        ids: Tokens ``[…, t]``, or ``[t]`` for all streams.

    Returns:
        Their probabilities ``[…, t]``, and whether each is on top of the whole vocabulary.
    """
    read = logits(model, model.bridge.ln_final(stream), slice(None)).float()  # [..., vocab]
    own = read.gather(-1, ids.expand(*read.shape[:-1], -1))
    top = own >= read.amax(-1, keepdim=True)
    probabilities = (double(own) - double(read).logsumexp(-1, keepdim=True)).exp()
    return probabilities.float().cpu(), top.cpu()
