"""`dynatree generate`: decode prompts and say how fast that was."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from dynatree.commands import options, request
from dynatree.config import checked
from dynatree.errors import UserError
from dynatree.study import params

_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"

_DESCRIPTION = """\
Decode a prompt greedily with one method. The output of every method equals that of `autoregressive`; what differs
is the number of target forwards, and the time. Without --json the text streams as it is committed: accepted draft
tokens in green, the target's own plain. Several prompts are decoded together where the method can, else one after the
other; their texts come under headings when all are done.

examples:
  dynatree generate --target smollm2 --drafter smollm2-drafter --method dynatree --prompt "The tree" --max-new-tokens 60
  dynatree generate --target ./my-model --method prompt_lookup --prompt-file essay.txt --max-new-tokens 200 --json
  dynatree generate --target smollm2 --drafter smollm2-drafter --method dynatree --set depth=4 --set threshold=0.1 \\
      --prompt-ids "504 2670" --max-new-tokens 40
"""


def register(add: Callable[..., argparse.ArgumentParser], find_model: request.FindModel) -> argparse.ArgumentParser:
    """Add the command by `add` (add_parser of the subparsers); `find_model` gives the folder of a model's name."""
    parser = add(
        "generate",
        help="decode prompts",
        description=_DESCRIPTION,
    )
    request.options(parser, several=True)
    parser.add_argument("--method", required=True, metavar="NAME", help="a method of params.yaml, such as dynatree")
    parser.add_argument("--max-new-tokens", type=int, required=True, metavar="N")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="1: none")
    parser.add_argument("--no-repeat-ngram-size", type=int, default=0, metavar="N", help="no N-gram twice; 0: any")
    parser.add_argument("--ignore-eos", action="store_true", help="go on behind the end-of-sequence token")
    parser.add_argument("--json", action="store_true", help="print one JSON object (of several prompts a list) only")
    options.machine(parser)
    parser.set_defaults(run=lambda arguments: _run(arguments, find_model))
    return parser


def _run(arguments: argparse.Namespace, find_model: request.FindModel) -> None:
    known = params.read()
    if arguments.method not in known.methods:
        raise UserError(f"--method: no {arguments.method!r}; choose one of {', '.join(known.methods)}")
    method = known.methods[arguments.method]
    knobs = request.settings(method, arguments.set)
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: {arguments.max_new_tokens}; give at least 1")
    # Imported late, so that errors in the arguments come at once.
    from dynatree.decoding import BatchDecoder
    from dynatree.generation.options import GenerationOptions
    from dynatree.measuring import runs

    named = ("max_new_tokens", "repetition_penalty", "no_repeat_ngram_size")
    asked: GenerationOptions = checked(
        "--repetition-penalty, --no-repeat-ngram-size",
        lambda given: GenerationOptions(**given),
        {name: getattr(arguments, name) for name in named},
    )
    target, decoder, prompts = request.load(arguments, known, knobs, find_model)
    runs.warm_up(decoder, prompts[:1], asked)
    wanted = asked if arguments.ignore_eos else asked.model_copy(update={"eos_token_id": target.eos_ids})
    stream = None if arguments.json or len(prompts) > 1 else _Stream(target.tokenizer)
    if len(prompts) == 1:
        traces = [decoder.decode(prompts[0], wanted, stream)]
    elif isinstance(decoder, BatchDecoder):
        traces = decoder.decode_batch(prompts, wanted)
    else:
        traces = [decoder.decode(ids, wanted) for ids in prompts]
    results = [
        _result(arguments.method, knobs, ids, trace, target.tokenizer)
        for ids, trace in zip(prompts, traces, strict=True)
    ]
    if arguments.json:
        print(json.dumps(results[0] if len(results) == 1 else results))
        return
    if stream is not None:
        stream.close()
    for number, (result, trace) in enumerate(zip(results, traces, strict=True), start=1):
        heading = "" if stream is not None else f"{number}: "
        if heading:
            print(f"== prompt {number} of {len(prompts)} ==")
            print(" ".join(map(str, trace.output)) if result["text"] is None else result["text"])
        rate = len(trace.output) / trace.seconds
        print(
            f"{heading}{len(trace.output)} tokens in {trace.seconds:.2f} s ({rate:.1f} tokens/s), "
            f"{result['rounds']} rounds, {result['target_forwards']} target forwards, "
            f"{result['accepted']} of {result['drafted']} drafted accepted",
            file=sys.stderr,
        )


def _result(method: str, knobs: dict[str, Any], prompt: list[int], trace: Any, tokenizer: Any) -> dict[str, Any]:
    """What --json prints of one prompt."""
    return {
        "method": method,
        "parameters": knobs,
        "prompt_ids": prompt,
        "output_ids": trace.output,
        "text": tokenizer.decode(trace.output) if tokenizer else None,
        "seconds": trace.seconds,
        "ttft_seconds": trace.commits[0],
        "rounds": len(trace.rounds),
        "target_forwards": trace.target_forwards,
        "draft_forwards": trace.draft_forwards,
        "drafted": sum(r.drafted for r in trace.rounds),
        "accepted": sum(r.accepted for r in trace.rounds),
    }


class _Stream:
    """Prints committed tokens at once, accepted drafted ones in green on a terminal."""

    def __init__(self, tokenizer: Any):
        from dynatree.api.text import Pieces

        self._pieces = Pieces(tokenizer)
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def __call__(self, tokens: list[int], accepted: int) -> None:
        for place, token in enumerate(tokens):
            piece = self._pieces.add(token)
            drafted = self._colour and place < accepted and piece
            sys.stdout.write(f"{_GREEN}{piece}{_PLAIN}" if drafted else piece)
        sys.stdout.flush()

    def close(self) -> None:
        """Print what still waits, which the output's limit cut short, and end the line."""
        print(self._pieces.rest())
