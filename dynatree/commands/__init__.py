"""Commands of `dynatree` beside generation: each module adds itself to the parser with `register`."""
