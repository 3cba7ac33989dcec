"""What the HTTP interface offers, in the words of OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

_ERROR = {"description": "What is wrong", "content": {"application/problem+json": {"schema": {"type": "object"}}}}
_STRINGS = {"type": "array", "items": {"type": "string"}}


def _answer(words: str) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": {"type": "object"}}}}


def _query(name: str, words: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": words, "schema": schema or {"type": "string"}}


_MESSAGE = {
    "type": "object",
    "required": ["recipients"],
    "additionalProperties": False,
    "properties": {
        "sender": {"type": "string", "description": "The reverse-path; empty for none"},
        "recipients": {
            "type": "array",
            "items": {
                "oneOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "required": ["address"],
                        "properties": {
                            "address": {"type": "string"},
                            "substitutions": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                    },
                ]
            },
        },
        "from": {"type": "string", "description": "The From field; the sender if it is left out"},
        "to": _STRINGS,
        "cc": _STRINGS,
        "reply_to": {"type": "string"},
        "subject": {"type": "string"},
        "text": {"type": "string", "description": "{{name}} stands for a substitution of the recipient"},
        "html": {"type": "string"},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "attachments": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "type", "data"],
                "properties": {
                    "name": {"type": "string"},
                    "type": {"type": "string"},
                    "data": {"type": "string", "contentEncoding": "base64"},
                },
            },
        },
    },
}

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Quillon", "version": ""},
    "components": {"securitySchemes": {"basic": {"type": "http", "scheme": "basic"}, "tls": {"type": "mutualTLS"}}},
    "security": [{"basic": []}, {"tls": []}],
    "paths": {
        "/api/v1/messages": {
            "post": {
                "summary": "Mail in: taken by the same reception as mail by SMTP, with the same rules and policy",
                "parameters": [
                    _query("sender", "Of message/rfc822: the reverse-path"),
                    _query("recipient", "Of message/rfc822: a recipient; may be repeated", _STRINGS),
                    {
                        "name": "Idempotency-Key",
                        "in": "header",
                        "description": "A second request with it is answered as the first, for a day",
                        "schema": {"type": "string"},
                    },
                ],
                "requestBody": {
                    "content": {
                        "message/rfc822": {"schema": {"type": "string"}},
                        "application/json": {"schema": {"oneOf": [_MESSAGE, {"type": "array", "items": _MESSAGE}]}},
                    }
                },
                "responses": {
                    "202": _answer("All messages are on the disk; `results` has the id and reply of each"),
                    "422": _answer("At least one was refused for good"),
                    "503": _answer("At least one was not taken for now"),
                    "400": _ERROR,
                    "401": _ERROR,
                    "403": _ERROR,
                    "413": _ERROR,
                    "415": _ERROR,
                },
            },
            "get": {
                "summary": "Messages that wait",
                "parameters": [
                    _query(name, words)
                    for name, words in (
                        ("domain", "Where it goes, or the recipient's domain"),
                        ("binding", "Binding or group"),
                        ("sender", "Pattern with * and ?"),
                        ("recipient", "Pattern with * and ?"),
                        ("cause", "Words of the last reply"),
                        ("older", "90, 15m, 2h, 3d"),
                        ("all", "Everything"),
                        ("limit", "How many are listed"),
                    )
                ],
                "responses": {"200": _answer("`items`, oldest first, and `total`"), "400": _ERROR},
            },
        },
        "/api/v1/messages/{id}": {
            "get": {
                "summary": "What waits of a reception, or one message, and why",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {"200": _answer("`items` and `reasons`"), "404": _ERROR},
            }
        },
        "/api/v1/queues": {
            "get": {
                "summary": "The largest queues",
                "parameters": [_query("limit", "How many", {"type": "integer"})],
                "responses": {"200": _answer("`queues` and totals")},
            }
        },
        "/api/v1/commands": {
            "post": {
                "summary": "A command of the console",
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["command"],
                                "properties": {"command": {"type": "string", "examples": ["mailq 5"]}},
                            }
                        }
                    }
                },
                "responses": {"200": _answer("`result`, as `--json` prints it"), "400": _answer("`error`")},
            }
        },
    },
}
