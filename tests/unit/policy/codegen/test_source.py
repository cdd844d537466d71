"""Generated code: its text, whom it is shown to, and how long it is kept."""

import gc
import linecache
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from benchmarks import telemetry_pb2
from dpmesh.noise.draws import Draws
from dpmesh.policy import Policy
from dpmesh.policy.codegen.source import Source, draw_function, function
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
NESTED = f"""
message M {{
  string id = 1 [(dpmesh.v1.field).unit = {{}}];
  Inner inner = 2;
  repeated int64 counts = 3 [{NUM} = {{lower: 0 upper: 10 epsilon: 1 nan: REJECT output: IN_RANGE}}, (dpmesh.v1.field).max_items = 2];
  oneof state {{
    option (dpmesh.v1.oneof) = {{epsilon: 1}};
    bool on = 4 [{CAT} = {{epsilon: 1}}];
    string note = 5 [(dpmesh.v1.field).suppress = {{}}];
  }}
  bytes key = 6 [(dpmesh.v1.field).message_id = {{}}];
}}
message Inner {{ string zone = 1 [{CAT} = {{epsilon: 1 domain: ["north", "south"]}}]; }}
"""
SECRET = "sensor-7-of-mrs-smith"


def alias(unit, epoch):
    return unit[:16]


def unhappy(unit, epoch):
    raise RuntimeError("no key")


def reading():
    return telemetry_pb2.Reading(device=SECRET, temperature=21.73125)


@pytest.mark.parametrize("name", ["reading", "nested"])
def test_golden_sources(name):
    if name == "reading":
        source = Policy().plan(telemetry_pb2.Reading.DESCRIPTOR).source
    else:
        types = compiled(NESTED)
        source = Policy().plan(types.M.DESCRIPTOR).source.replace(f"{types.package}.", "golden.")
    assert source == (Path(__file__).parent / f"{name}.golden").read_text()


def test_a_traceback_shows_the_line_and_no_value():
    plan = Policy().plan(telemetry_pb2.Reading.DESCRIPTOR)
    with pytest.raises(RuntimeError) as caught:
        plan.protect(reading(), unhappy)
    shown = "".join(traceback.format_exception(caught.value))
    (frame,) = [each for each in traceback.extract_tb(caught.tb) if each.filename.startswith("<dpmesh ")]
    assert frame.filename.startswith("<dpmesh dpmesh.bench.v1.Reading")
    assert frame.line == "out = alias(unit, 86400.0).hex()"
    assert frame.lineno is not None
    assert plan.source.splitlines()[frame.lineno - 1].strip() == frame.line
    assert frame.line in shown
    assert SECRET not in shown
    assert "21.73125" not in shown


def test_every_function_stands_where_its_code_says():
    plan = Policy().plan(compiled(NESTED).M.DESCRIPTOR)
    lines = plan.source.splitlines(keepends=True)
    for build in (plan.build, plan.build_blank):
        code = build.__code__
        assert linecache.getlines(code.co_filename) == lines
        assert lines[code.co_firstlineno - 1] == "def protect(source, alias):\n"


def test_lines_go_with_the_plan():
    types = compiled("message Gone { bool a = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }")
    plans = [Policy().plan(types.Gone.DESCRIPTOR) for _ in range(3)]
    names = [plan.build.__code__.co_filename for plan in plans]
    assert len(set(names)) == 3
    assert names[0] == f"<dpmesh {types.package}.Gone>"
    assert all(name in linecache.cache for name in names)
    build = plans.pop().build
    del plans
    gc.collect()
    assert [name in linecache.cache for name in names] == [False, False, True]
    assert build.__code__.co_filename == names[2]
    del build
    gc.collect()
    assert not {*names} & {*linecache.cache}


def test_plans_that_fail_leave_no_lines():
    types = compiled(f"message Bad {{ bool a = 1 [{CAT} = {{epsilon: 1}}]; bool b = 2 [{CAT} = {{}}]; }}")
    assert Policy().diagnostics(types.Bad.DESCRIPTOR)
    gc.collect()
    assert not [name for name in linecache.cache if f"{types.package}.Bad" in name]


def test_functions_of_two_threads_do_not_mix():
    def made(number):
        with Source(f"thread {number}") as source:
            for _ in range(50):
                function("own", "", "", f"{number}", {})
        return source.text

    with ThreadPoolExecutor(4) as pool:
        for number, text in enumerate(pool.map(made, range(8))):
            assert text.count(f"return {number}") == text.count("return") == 50


def test_sources_that_are_made_at_once_have_names_of_their_own():
    together = Barrier(8)

    def made(_):
        together.wait()
        return Source("raced")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(1000):
                sources = list(pool.map(made, range(8)))
                assert len({source.filename for source in sources}) == 8
    finally:
        sys.setswitchinterval(before)


def test_equal_texts_keep_their_own_files_and_names():
    draws = [draw_function(Draws((number,), lambda count, _: None, "y = x + code")) for number in range(2)]
    files = [draw.__code__.co_filename for draw in draws]
    assert len(set(files)) == 2
    assert all("y = x + code" in "".join(linecache.getlines(file)) for file in files)
    assert draws[0].__globals__["pop"].__self__ is not draws[1].__globals__["pop"].__self__


def test_the_text_depends_on_no_value():
    types = compiled(NESTED)
    plan = Policy().plan(types.M.DESCRIPTOR)
    before = plan.source
    plan.protect(types.M(id=SECRET, counts=[7]), alias)
    assert plan.source == before
    assert SECRET not in before
