"""Render a stranger's chat template: a process of its own, which `chat_texts.py` starts and never imports.

    stdin   {"template", "tokens", "conversations": [[messages, add_generation_prompt], …], and three limits}
    stdout  {"texts": one for each conversation}, or {"failure": what the template does, in words}

It is started by its path, with `python -I FOLDER_OF_JINJA2`. So it imports nothing of theworld and starts in 0.1 s.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

_TODAY = datetime(2024, 7, 26)
"""What a template that asks for the date is told, so that no prompt depends on the day: Llama's takes it, too."""


class _Refused(Exception):  # noqa: N818 - not a mistake of this program
    pass


def main() -> None:
    request = json.load(sys.stdin.buffer)
    sys.path.append(sys.argv[1])
    limits = request["limits"]
    try:
        _limit("RLIMIT_AS", limits["memory_bytes"])
        _limit("RLIMIT_CPU", limits["cpu_s"])
        answer: dict[str, Any] = {"texts": _render(request, limits["answer_bytes"])}
    except _Refused as refusal:
        answer = {"failure": str(refusal)}
    except MemoryError:
        answer = {"failure": "takes more memory than a chat template may have"}
    except RecursionError:
        answer = {"failure": "calls itself without end"}
    except Exception as error:  # repr: a stranger wrote the message, and it may hold what steers a terminal
        answer = {"failure": f"fails with {type(error).__name__}: {str(error)[:200]!r}"}
    sys.stdout.write(json.dumps(answer))


def _limit(name: str, most: int) -> None:
    with suppress(ImportError, AttributeError, ValueError, OSError):  # a system without that limit
        import resource

        resource.setrlimit(getattr(resource, name), (most, most))


def _render(request: dict[str, Any], most: int) -> list[str]:
    environment = _environment()
    environment.from_string(r"{{ 'a\n' ~ strftime_now('%B') }}").render()  # imports what Python imports on first use
    _limit("RLIMIT_NOFILE", 3)  # from here on no file and no socket can be opened, no process started
    _limit("RLIMIT_NPROC", 0)
    template = environment.from_string(request["template"])
    texts: list[str] = []
    for messages, add_generation_prompt in request["conversations"]:
        texts.append(
            template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **request["tokens"],
            )
        )
        if sum(map(len, texts)) > most // 2:
            raise _Refused(f"writes more than {most // 2} characters")
    return texts


def _environment() -> Any:
    """What transformers renders chat templates in, in `render_jinja_template`; a test compares the two."""
    # these two are else imported on first use, when no file can be opened any more
    import jinja2.constants  # pyright: ignore[reportUnusedImport]
    import jinja2.debug  # pyright: ignore[reportUnusedImport]
    import jinja2.exceptions
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils

    class Generation(jinja2.ext.Extension):
        """{% generation %}, with which transformers marks what a model said; it writes its content."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Any) -> str:
            return caller()

    class Dict:
        """`dict` without its attributes, which lead out of the sandbox."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args, **kwargs)

    class Namespace(jinja2.utils.Namespace):
        """`namespace` without underscored names, for the same reason."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # so that a template may name an attribute `self`
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                check(name)
            jinja2.utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: Any, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")

    def raise_exception(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form: str) -> str:
        return _TODAY.strftime(form)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=strftime_now,
        dict=Dict(),
        namespace=Namespace,
    )
    return environment


if __name__ == "__main__":
    main()
