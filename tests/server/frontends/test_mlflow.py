"""MLflow's scoring protocol: every input form, its answers, and what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salver import __version__
from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.server.frontends import FRONTENDS, Services
from salver.server.frontends.frames import Frame, SplitTable, read_csv, read_records, read_split, to_instances
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.frontends import FrontendConformance, InlineEngine, body_of, call

LINEAR = "/invocations/linear"
X = np.array([[1, 2, 3, 4], [-1, 0, 0.5, 9.25]], np.float32)
FRAME = pd.DataFrame(X, columns=["a", "b", "c", "d"])
PAIR = pd.DataFrame({"b": [3.0, 4.0], "a": [1.5, -2.0]})


def ask(frontend, path, value, **fields):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return call(frontend, "POST", path, body, **fields)


def predictions(frontend, path, value, **fields):
    answer = ask(frontend, path, value, **fields)
    assert answer.status == 200, body_of(answer)
    return json.loads(b"".join([answer.answer[1]]))["predictions"]


class TestMlflow(FrontendConformance):
    member = "mlflow"

    @pytest.mark.parametrize(
        ("value", "fields"),
        [
            ({"dataframe_split": FRAME.to_dict(orient="split")}, {}),
            ({"dataframe_split": {"data": X.tolist()}}, {"content_type": b"application/json; charset=UTF-8"}),
            ({"dataframe_split": pd.DataFrame(X).to_dict(orient="split")}, {"content_type": b"application/json"}),
            ({"dataframe_records": FRAME.to_dict(orient="records")}, {}),
            ({"instances": X.tolist()}, {}),
            ({"instances": [{"x": row} for row in X.tolist()]}, {}),
            ({"inputs": X.tolist()}, {}),
            ({"inputs": [{"x": row} for row in X.tolist()], "client_request_id": "7"}, {}),
            ({"inputs": {"x": X.tolist()}, "params": {"temperature": 1}}, {}),
            (FRAME.to_csv(index=False).encode(), {"content_type": b"text/csv"}),
        ],
    )
    def test_every_form_gives_the_numbers_of_the_model(self, frontend, models, value, fields):
        model = [m for m in models if m.name == "linear"][-1]
        expected = model.session.run({"x": X})["scores"]
        got = np.array(predictions(frontend, LINEAR, value, **fields), np.float32)
        assert np.array_equal(got, expected)

    def test_tables_of_several_inputs_and_outputs_give_records(self, frontend):
        expected = [{"total": [4.5], "whole": [1]}, {"total": [2.0], "whole": [-2]}]
        wide = PAIR.assign(more=["x", "y"])
        path = "/invocations/pair"
        assert predictions(frontend, path, {"dataframe_split": wide.to_dict(orient="split")}) == expected
        assert predictions(frontend, path, {"dataframe_records": wide.to_dict(orient="records")}) == expected
        assert predictions(frontend, path, wide.to_csv(index=False).encode(), content_type=b"text/csv") == expected

    def test_tensors_of_several_inputs_give_an_object_of_tensors(self, frontend):
        expected = {"total": [[4.5], [2.0]], "whole": [[1], [-2]]}
        columns = {"a": [[1.5], [-2]], "b": [[3], [4]]}
        rows = [{"a": [1.5], "b": [3]}, {"a": [-2], "b": [4]}]
        assert predictions(frontend, "/invocations/pair", {"inputs": columns}) == expected
        assert predictions(frontend, "/invocations/pair", {"instances": rows}) == expected

    def test_texts_and_missing_numbers(self, frontend):
        table = b'x\r\n"a, ""quoted"" text"\r\n\r\nnull\r\n'
        texts = predictions(frontend, "/invocations/id-bytes", table, content_type=b"text/csv")
        assert texts == [['a, "quoted" text'], ["null"]]
        found = predictions(frontend, "/invocations/id-fp32", b"x,y\n1,\n", content_type=b"text/csv; charset=utf-8")
        assert found[0][0] == 1.0
        assert np.isnan(found[0][1])
        records = {"dataframe_records": [{"x": None}, {"x": 2}]}
        assert np.isnan(predictions(frontend, "/invocations/id-fp64", records)[0][0])

    def test_health_and_version(self, frontend, services):
        for path in ("/ping", "/health"):
            assert (call(frontend, "GET", path).status, call(frontend, "GET", path).answer[1]) == (200, b"\n")
        assert call(frontend, "GET", "/version").answer[1].decode() == __version__
        services.engine.is_ready = False
        assert call(frontend, "GET", "/ping").status == 503

    def test_the_only_model_needs_no_name(self, models, frontend):
        assert "/invocations/linear" in body_of(ask(frontend, "/invocations", {"inputs": [1]}))["error"]
        engine = InlineEngine([m for m in models if m.name == "id-int64"])
        alone = FRONTENDS.get("mlflow")(Services(engine, Metrics(engine.models), ServeSettings()))
        assert predictions(alone, "/invocations", {"inputs": [[7]]}) == [[7]]
        assert {"/invocations", "/invocations/id-int64"} == set(alone.openapi(engine.models()))

    @pytest.mark.parametrize(
        ("path", "value", "fields", "status", "message"),
        [
            (LINEAR, {}, {}, 400, "got no input, expected one of"),
            (LINEAR, {"inputs": [1], "instances": [1]}, {}, 400, "got instances and inputs, expected one of"),
            (LINEAR, {"messages": []}, {}, 400, "got no input, expected one of"),
            (LINEAR, [1], {}, 400, "Expected `object`"),
            (LINEAR, {"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, {}, 400, "row 0 has 2 cells"),
            (LINEAR, {"dataframe_split": {"columns": ["a", "a"], "data": []}}, {}, 400, "'a' comes 2 times"),
            (LINEAR, {"dataframe_split": {"data": []}}, {}, 400, "one row or more"),
            (LINEAR, {"dataframe_split": {"data": [[1, 2, 3]]}}, {}, 400, "got shape [3], expected [4]"),
            (LINEAR, {"dataframe_records": []}, {}, 400, "one row or more"),
            ("/invocations/pair", {"dataframe_records": [{"a": 1}]}, {}, 400, "missing column 'b'; got 'a'"),
            ("/invocations/pair", {"dataframe_records": [{"a": 1}, {"b": 1}]}, {}, 400, "record 1 has the columns 'b'"),
            ("/invocations/pair", {"inputs": [1]}, {}, 400, "expected an object with the inputs 'a', 'b'"),
            ("/invocations/pair", {"inputs": {"a": [[1]], "c": 1}}, {}, 400, "unknown input 'c'; missing input 'b'"),
            (LINEAR, {"inputs": {"x": []}}, {}, 400, "at least one row"),
            (LINEAR, b"", {"content_type": b"text/csv"}, 400, "got nothing"),
            (LINEAR, b"a\n\xff", {"content_type": b"text/csv"}, 400, "byte 0xff"),
            (LINEAR, b'a\n"b', {"content_type": b"text/csv"}, 400, "CSV: unexpected end"),
            (LINEAR, b"a,b,c,d\n1,2,3,x", {"content_type": b"text/csv"}, 400, "row 0, input 'x': 'x' is no FP32"),
            ("/invocations/id-bool", b"x\n2", {"content_type": b"text/csv"}, 400, "'2' is no BOOL"),
            (LINEAR, b"x", {"content_type": b"text/plain"}, 415, "text/plain"),
            (LINEAR, b"x", {"content_type": b"text/csv; charset=latin-1"}, 415, "latin-1"),
        ],
    )
    def test_what_does_not_fit_is_named(self, frontend, path, value, fields, status, message):
        answer = ask(frontend, path, value, **fields)
        assert answer.status == status
        assert message in body_of(answer)["error"]

    def test_outputs_without_a_value_for_each_row_are_refused(self, services):
        specs = [TensorSpec(name=n, datatype="FP32", shape=("n",)) for n in ("x", "y", "z")]
        given = Signature(inputs=tuple(specs[:1]), outputs=tuple(specs[1:]))

        class Summing:
            signature = given

            def run(self, inputs, outputs=None):
                return {"y": inputs["x"], "z": inputs["x"].sum(keepdims=True)}

        from salver.testing.frontends import SessionModel

        engine = InlineEngine([SessionModel("m", Summing())])
        frontend = FRONTENDS.get("mlflow")(Services(engine, Metrics(engine.models), ServeSettings()))
        answer = ask(frontend, "/invocations", {"dataframe_records": [{"x": 1}, {"x": 2}]})
        assert (answer.status, "no row for each of 2" in body_of(answer)["error"]) == (400, True)
        assert predictions(frontend, "/invocations", {"inputs": [1, 2]}) == {"y": [1.0, 2.0], "z": [3.0]}


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_frame_means_the_same_split_in_records_and_as_csv(data):
    width, height = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    names = data.draw(st.lists(st.text('ab,"é \n', min_size=1), min_size=width, max_size=width, unique=True))
    cells = st.lists(st.floats(width=32, allow_nan=False), min_size=width, max_size=width)
    frame = pd.DataFrame(data.draw(st.lists(cells, min_size=height, max_size=height)), columns=names)
    spec = TensorSpec(name="not a column", datatype="FP64", shape=("n", width))
    signature = Signature(inputs=(spec,), outputs=(spec,))
    split = frame.to_dict(orient="split")
    tables = [
        read_split(SplitTable(data=split["data"], columns=split["columns"])),
        read_records(frame.to_dict(orient="records")),
        read_csv(frame.to_csv(index=False).encode()),
    ]
    assert [table.columns for table in tables] == [tuple(names)] * 3
    assert [to_instances(table, signature) for table in tables] == [frame.to_numpy().tolist()] * 3


@settings(max_examples=100, deadline=None)
@given(body=st.one_of(st.binary(max_size=200), st.text('a,"\r\n\0', max_size=50).map(str.encode)))
def test_any_bytes_are_a_table_or_refused(body):
    try:
        table = read_csv(body)
    except InvalidArgument as error:
        assert error.message.startswith(("CSV", "column"))
        return
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_truths_are_read_as_pandas_writes_them():
    spec = TensorSpec(name="x", datatype="BOOL", shape=("n",))
    frame = read_csv(pd.DataFrame({"x": [True, False]}).to_csv(index=False).encode())
    assert to_instances(frame, Signature(inputs=(spec,), outputs=(spec,))) == [{"x": True}, {"x": False}]
    assert Frame(("x",), [["True"], ["False"]], True) == frame
