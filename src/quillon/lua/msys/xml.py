"""`xml`: documents parsed, searched, changed. No entities of a document's own, no external ones."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from quillon.lua.msys.api import Library, Object

library = Library()

MAX_TEXT = 2**20  # octets


@dataclass(slots=True)
class Document:
    root: Element


@dataclass(slots=True)
class XmlNode:
    document: Document
    element: Element


def parse(text: str) -> Document:
    """Raises ValueError, for a document type declaration too: that is where entities come from."""
    if len(text) > MAX_TEXT:
        raise ValueError("the document is too long")
    if "<!DOCTYPE" in text.upper():
        raise ValueError("a document type declaration is not read")
    try:
        return Document(ElementTree.fromstring(text))  # noqa: S314 - without a declaration there are no entities
    except ElementTree.ParseError as error:
        raise ValueError(f"malformed XML: {error}") from None


def _text(element: Element) -> str:
    return ElementTree.tostring(element, "unicode")


@library.function("xml.parsexml")
def parsexml(text: str) -> Object:
    """A document."""
    return Object("xmldoc", parse(text))


@library.function("xmldoc:root")
def root(document: Document) -> Object:
    """Its root node."""
    return Object("xmlnode", XmlNode(document, document.root))


@library.function("xmldoc:tostring")
def document_text(document: Document) -> str:
    """As text."""
    return _text(document.root)


@library.function("xmldoc:xpath")
def xpath(document: Document, path: str) -> list[Object]:
    """The nodes that a path finds; the subset of XPath that has paths, attributes, positions."""
    path = "." + path if path.startswith("/") else path
    try:
        holder = Element("holder")
        holder.append(document.root)
        return [Object("xmlnode", XmlNode(document, found)) for found in holder.findall(path)]
    except SyntaxError as error:
        raise ValueError(f"{path!r}: {error}") from None


@library.function("xmlnode:name")
def name(node: XmlNode) -> str:
    """The name of its element."""
    return node.element.tag


@library.function("xmlnode:contents")
def contents(node: XmlNode, text: str | None = None) -> str:
    """The text inside; or another one."""
    if text is not None:
        node.element.text = text
    return "".join(node.element.itertext())


@library.function("xmlnode:attribute")
def attribute(node: XmlNode, name: str, value: str | None = None) -> str | None:
    """An attribute; or another value of it."""
    if value is not None:
        node.element.set(name, value)
    return node.element.get(name)


@library.function("xmlnode:no_attribute")
def no_attribute(node: XmlNode, name: str) -> None:
    """Take an attribute away."""
    node.element.attrib.pop(name, None)


@library.function("xmlnode:children")
def children(node: XmlNode) -> list[Object]:
    """The nodes inside."""
    return [Object("xmlnode", XmlNode(node.document, child)) for child in node.element]


@library.function("xmlnode:addchild")
def addchild(node: XmlNode, name: str, text: str | None = None) -> Object:
    """A new node inside."""
    child = ElementTree.SubElement(node.element, name)
    child.text = text
    return Object("xmlnode", XmlNode(node.document, child))


@library.function("xmlnode:unlink")
def unlink(node: XmlNode) -> bool:
    """Take it out of its document."""
    for parent in node.document.root.iter():
        if node.element in list(parent):
            parent.remove(node.element)
            return True
    return False


@library.function("xmlnode:doc")
def doc(node: XmlNode) -> Object:
    """Its document."""
    return Object("xmldoc", node.document)


@library.function("xmlnode:tostring")
def node_text(node: XmlNode) -> str:
    """As text."""
    return _text(node.element)
