"""Where heads look: attention between groups of tokens."""

import torch

from seqcirc_utils.prompts.prompts import Prompts


def query_groups(prompts: Prompts) -> dict[str, torch.Tensor]:
    """Where attention is read from: name to boolean mask ``[n, pos]``.

    ``member 1`` …, ``later members`` (all but the first), ``in`` (those before a shown member, but
    the first), ``end``, and as a control ``filler``: the name or thing of each sentence but the
    first.
    """
    groups = prompts.groups()
    members = [mask for name, mask in groups.items() if name.startswith("member")]
    found = {f"member {i + 1}": mask for i, mask in enumerate(members)}
    found["later members"] = torch.stack(members[1:] or members).any(0)
    found["in"] = _marked(prompts, prompts.in_positions[:, 1:-1])
    found["end"] = groups["end"]
    found["filler"] = _marked(prompts, _fillers(prompts)[:, 1:])
    return found


def _fillers(prompts: Prompts) -> torch.Tensor:
    return prompts.in_positions - 2  # every template reads "<filler> <verb> in"


def _marked(prompts: Prompts, positions: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(prompts.tokens.shape, dtype=torch.bool)
    return mask.scatter(1, positions, True)


def key_groups(prompts: Prompts) -> dict[str, torch.Tensor]:
    """What attention is read to, seen from each query: name to boolean mask ``[n, query, key]``.

    ``newest member`` is the last one before the query, ``earlier members`` those before it,
    ``itself`` the query, ``earlier copies`` earlier tokens equal to it, then ``previous token``,
    ``first token`` and, as a control, ``earlier fillers``; ``member i`` is one member. Groups may
    overlap: the previous token may be a member.
    """
    n, pos = prompts.tokens.shape
    at = torch.arange(pos)
    before = at[:, None] > at  # [query, key]
    member = _marked(prompts, prompts.member_positions)[:, None, :] & before
    order = prompts.member_positions.sort(-1).values
    # For each query the number of members before it: the newest is the one with that number.
    passed = member.sum(-1, keepdim=True)
    number = torch.zeros(n, pos, dtype=torch.long)
    number.scatter_(1, order, torch.arange(1, order.shape[1] + 1).expand(n, -1))
    newest = member & (number[:, None, :] == passed)
    same = prompts.tokens[:, :, None] == prompts.tokens[:, None, :]
    found = {
        "earlier members": member & ~newest,
        "newest member": newest,
        "itself": torch.eye(pos, dtype=torch.bool).expand(n, -1, -1),
        "earlier copies": same & before,
        "previous token": (at[:, None] == at + 1).expand(n, -1, -1),
        "first token": (before & (at == 0)).expand(n, -1, -1),
        "earlier fillers": _marked(prompts, _fillers(prompts))[:, None, :] & before,
    }
    for i in range(order.shape[1]):
        found[f"member {i + 1}"] = _marked(prompts, order[:, i : i + 1])[:, None, :] & before
    return found


def group_attention(
    pattern: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """Attention from query groups to key groups, averaged over the queries of a prompt.

    Args:
        pattern: ``[n, head, query position, key position]``.
        queries: Masks ``[group, n, query position]``.
        keys: Masks ``[group, n, query position, key position]``.

    Returns:
        ``[head, n, query group, key group]``; zero for a query group without a token.
    """
    weights = queries / queries.sum(-1, keepdim=True).clamp(min=1)  # [query group, n, query]
    # What each query pays to each group of keys: [n, head, query, key group].
    summed = torch.stack([(pattern * mask[:, None]).sum(-1) for mask in keys.float()], -1)
    return torch.einsum("nhqk,gnq->hngk", summed, weights.to(summed))


ATTENTION_EVIDENCE = {
    "end_to_members": ("end", "earlier members", "newest member"),
    "in_to_copies": ("in", "earlier copies"),
    "members_to_members": ("later members", "earlier members", "newest member"),
    "end_to_newest": ("end", "newest member"),
    "fillers_to_fillers": ("filler", "earlier fillers"),
    "members_to_themselves": ("later members", "itself"),
    "members_to_previous": ("later members", "previous token"),
    "members_to_first": ("later members", "first token"),
    "end_to_first": ("end", "first token"),
}
"""Evidence column to query group and key groups. The first three decide; the others tell."""
SIZE_EVIDENCE = {
    "end_to_members": "end",
    "in_to_copies": "in",
    "members_to_members": "later members",
}
"""Where a head that looks there writes; the column is ``<column>_size``, a norm."""
