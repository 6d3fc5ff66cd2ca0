"""Runs the python blocks of one page in one process, one namespace, one event loop: a block a line on stdin.

Blocks may use `await` at the top level. What they print comes back with the answer. Run as a script by the tests.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import sys
import traceback
import types


def main() -> None:
    answers = sys.stdout
    module = types.ModuleType("page")
    sys.modules["page"] = module  # so that annotations in the blocks resolve
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            block = json.loads(line)
            printed = io.StringIO()
            failure, kind = "", ""
            try:
                # so that line numbers are the page's
                source = "\n" * block["line"] + block["text"]
                code = compile(source, block["page"], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                with contextlib.redirect_stdout(printed):
                    if code.co_flags & inspect.CO_COROUTINE:
                        runner.run(_awaited(code, module))
                    else:
                        exec(code, module.__dict__)
            except BaseException as error:
                failure, kind = "".join(traceback.format_exception(error)), type(error).__name__
            print(
                json.dumps({"failure": failure, "kind": kind, "printed": printed.getvalue()}), file=answers, flush=True
            )


async def _awaited(code: types.CodeType, module: types.ModuleType) -> None:
    await eval(code, module.__dict__)


if __name__ == "__main__":
    main()
