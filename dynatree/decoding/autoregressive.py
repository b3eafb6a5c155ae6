"""Autoregressive decoding, one token a forward: the reference that every other decoder must equal and beat."""

from collections.abc import Sequence

from dynatree.decoding import RoundDecoder, TargetAlone, may_lend
from dynatree.engine.backend import Feed
from dynatree.generation.request import Request
from dynatree.generation.trace import Clock, Round


class Decoder(TargetAlone, RoundDecoder):
    """Our own autoregressive loop on our own cache."""

    def _round(self, active: Sequence[Request], clock: Clock) -> None:
        with clock.phase("verify"):
            feeds = [Feed(request.last, request.cache) for request in active]
            rows = self._target.forward_batch(feeds, lent=may_lend(active))
            tokens = [request.next_token(row.logits) for request, row in zip(active, rows, strict=True)]
        for request, token in zip(active, tokens, strict=True):
            request.commit(Round(drafted=0, depth=0, accepted=0, emitted=[token], draft_forwards=0))
