"""What to decode by: a method of params.yaml, or one like it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dynatree import plugins
from dynatree.decoding import Needs
from dynatree.errors import UserError
from dynatree.settings import PLUGGED
from dynatree.study import params, plugin_checks


class Method(NamedTuple):
    """Its name, its decoder plug-in and the decoder's knobs, checked."""

    name: str
    decoder: str
    knobs: dict[str, Any]

    @property
    def needs(self) -> Needs:
        """What it must or may be given besides the target."""
        needs: Needs = plugins.load("decoding", self.decoder).Decoder.needs(self.knobs)
        return needs


def packaged(name: str, knobs: Mapping[str, Any]) -> Method:
    """The method `name` of the packaged params.yaml with `knobs` changed. Raises UserError, with the choices."""
    methods = params.packaged().methods
    if name not in methods:
        raise UserError(f"method: no {name!r}; choose one of {', '.join(methods)}")
    own = methods[name].knobs
    settable = [knob for knob in own if knob not in PLUGGED]
    for knob in knobs:
        if knob not in settable:
            raise UserError(f"{knob}: method {name} has no such parameter; it has {', '.join(settable) or 'none'}")
    return checked(f"method {name}", Method(name, methods[name].decoder, own | dict(knobs)))


def checked(what: str, method: Method) -> Method:
    """`method`, whose decoder takes its knobs. Raises UserError, which begins with `what`, where it does not."""
    plugin_checks.check_method(what, method.decoder, method.knobs)
    return method
