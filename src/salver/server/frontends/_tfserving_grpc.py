"""TensorFlow Serving over gRPC: ``tensorflow.serving.PredictionService`` and ``ModelService``, without TensorFlow.

https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, SalverError, Unimplemented
from salver.core.tensors import Signature
from salver.server.engine.base import ServedModel
from salver.server.frontends.base import Frontend, Method, Services
from salver.server.frontends.grpc.call import Call
from salver.server.frontends.tfserving.examples import read_input, to_arrays, to_classes, to_numbers
from salver.server.frontends.tfserving.predict import Decoded, PredictCodec, model_spec
from salver.server.frontends.tfserving.reload import Reload, read_config
from salver.server.frontends.tfserving.signatures import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    SIGNATURE_NAME,
    check_signature_name,
    signature_def,
)
from salver.server.frontends.tfserving.template import Templates
from salver.server.frontends.tfserving.tensors import PROTOS
from salver.server.frontends.tfserving.versions import find_model, list_statuses, number_of
from salver.wire.protos import ProtoSet

_PREDICTION: Final = "/tensorflow.serving.PredictionService/"
_MODELS: Final = "/tensorflow.serving.ModelService/"
_METADATA_FIELD: Final = "signature_def"


def _message(name: str) -> Any:
    return PROTOS.message(f"tensorflow.serving.{name}")


_PREDICT_REQUEST: Final = _message("PredictRequest")
_CLASSIFICATION: Final = _message("ClassificationResult")
_REGRESSION: Final = _message("RegressionResult")


class TfservingGrpcFrontend(Frontend):
    """Predict, classify, regress, metadata, status, and another configuration."""

    name = "tfserving-grpc"

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._codecs: weakref.WeakKeyDictionary[ServedModel, PredictCodec] = weakref.WeakKeyDictionary()
        self._templates = Templates()

    def methods(self) -> Sequence[Method]:
        return (
            Method(f"{_PREDICTION}Predict", self._predict, "infer"),
            Method(f"{_PREDICTION}Classify", self._classify, "infer"),
            Method(f"{_PREDICTION}Regress", self._regress, "infer"),
            Method(f"{_PREDICTION}MultiInference", self._multi_inference, "infer"),
            Method(f"{_PREDICTION}GetModelMetadata", self._metadata, "metadata"),
            Method(f"{_MODELS}GetModelStatus", self._status, "open"),
            Method(f"{_MODELS}HandleReloadConfigRequest", self._reload, "admin"),
        )

    def protos(self) -> Sequence[ProtoSet]:
        return (PROTOS,)

    # Inference

    def _predict(self, call: Call) -> None:
        template = self._templates.match(call.message)
        if template is not None:
            model = find_model(self.services.engine, *template.named)
            if template.model() is model:
                self._infer(call, model, template.codec, template.fill(call.message))
                return
        request = _parse(_PREDICT_REQUEST, call)
        named = _named(request.model_spec)
        model = find_model(self.services.engine, *named)
        codec = self._codecs.get(model) or self._add_codec(model)
        try:
            decoded = codec.decode(request)
        except SalverError as error:
            self.services.dataplane.refuse(model, error, call.started_s)
            raise
        self._templates.learn(call.message, named, decoded, codec, model)
        self._infer(call, model, codec, decoded)

    def _infer(self, call: Call, model: ServedModel, codec: PredictCodec, decoded: Decoded) -> None:
        wanted = decoded.wanted

        def encode(outputs: dict[str, Array]) -> None:
            call.respond(codec.encode(outputs, wanted))

        self.services.dataplane.infer(
            call,
            model,
            decoded.inputs,
            decoded.rows,
            encode,
            call.started_s,
            outputs=wanted,
            deadline_s=call.deadline_s,
        )

    def _add_codec(self, model: ServedModel) -> PredictCodec:
        settings = self.services.settings
        codec = self._codecs[model] = PredictCodec(
            model.name, model.version, model.signature, settings.max_decompressed_bytes, settings.max_string_bytes
        )
        return codec

    def _classify(self, call: Call) -> None:
        request = _parse(_message("ClassificationRequest"), call)
        self._answer(call, request, _message("ClassificationResponse"), _classification)

    def _regress(self, call: Call) -> None:
        request = _parse(_message("RegressionRequest"), call)
        self._answer(call, request, _message("RegressionResponse"), _regression)

    def _answer(self, call: Call, request: Any, response: Any, result: _Result) -> None:
        model = self._find(request.model_spec)

        def encode(outputs: Mapping[str, Array], rows: int) -> None:
            spec = model_spec(model.name, model.version, SIGNATURE_NAME)
            answer = response(model_spec=spec, result=result(outputs, model.signature, rows))
            call.respond(answer.SerializeToString())

        self._run_examples(call, model, [request.model_spec], request.input, encode)

    def _multi_inference(self, call: Call) -> None:
        """Every task asks the same model about the same examples: it is run once."""
        request = _parse(_message("MultiInferenceRequest"), call)
        tasks: dict[str, Any] = {}
        for task in request.tasks:
            if task.method_name not in _TASKS:
                raise Unimplemented(f"Unsupported signature method_name: '{task.method_name}'; use {', '.join(_TASKS)}")
            if task.method_name in tasks:
                raise InvalidArgument(f"Duplicate evaluation of signature: two tasks ask for '{task.method_name}'")
            tasks[task.method_name] = task
        if not tasks:
            raise InvalidArgument("MultiInferenceRequest has no tasks")
        models = [self._find(task.model_spec) for task in tasks.values()]
        model = models[0]
        if any(other is not model for other in models):
            raise InvalidArgument("all tasks of a MultiInferenceRequest must name the same model and version")

        def encode(outputs: Mapping[str, Array], rows: int) -> None:
            answer = _message("MultiInferenceResponse")()
            for method in tasks:
                field, result = _TASKS[method]
                spec = model_spec(model.name, model.version, SIGNATURE_NAME)
                answer.results.add(model_spec=spec, **{field: result(outputs, model.signature, rows)})
            call.respond(answer.SerializeToString())

        self._run_examples(call, model, [task.model_spec for task in tasks.values()], request.input, encode)

    def _run_examples(
        self,
        call: Call,
        model: ServedModel,
        asked: Sequence[Any],
        given: Any,
        encode: Callable[[Mapping[str, Array], int], None],
    ) -> None:
        dataplane = self.services.dataplane
        try:
            for spec in asked:
                check_signature_name(spec.signature_name)
            rows = read_input(given, model.signature)
            inputs, size = to_arrays(rows, model.signature, self.services.settings.max_string_bytes)
        except SalverError as error:
            dataplane.refuse(model, error, call.started_s)
            raise
        dataplane.infer(
            call,
            model,
            inputs,
            size,
            lambda outputs: encode(outputs, size),
            call.started_s,
            deadline_s=call.deadline_s,
        )

    # Models

    def _metadata(self, call: Call) -> None:
        request = _parse(_message("GetModelMetadataRequest"), call)
        if not request.metadata_field:
            raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != _METADATA_FIELD:
                raise InvalidArgument(f"Metadata field {field} is not supported; the only one is '{_METADATA_FIELD}'")
        model = self._find(request.model_spec)
        signatures = _message("SignatureDefMap")()
        _describe(model.signature, signatures.signature_def[SIGNATURE_NAME])
        answer = _message("GetModelMetadataResponse")(model_spec=model_spec(model.name, model.version))
        packed = answer.metadata[_METADATA_FIELD]
        packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        packed.value = signatures.SerializeToString()
        call.respond(answer.SerializeToString())

    def _status(self, call: Call) -> None:
        request = _parse(_message("GetModelStatusRequest"), call)
        answer = _message("GetModelStatusResponse")()
        for status in list_statuses(self.services.engine, *_named(request.model_spec)):
            answer.model_version_status.add(
                version=number_of(status.version) or 0,
                state=status.state,
                status={"error_code": status.code, "error_message": status.message},
            )
        call.respond(answer.SerializeToString())

    def _reload(self, call: Call) -> None:
        request = _parse(_message("ReloadConfigRequest"), call)
        repository = self.services.engine.repository
        wanted = read_config(request.config, repository)

        def ended(error: SalverError | None) -> None:
            if error is None:
                call.respond(_message("ReloadConfigResponse")(status={"error_code": "OK"}).SerializeToString())
            else:
                call.fail(error)

        Reload(repository, wanted, ended).start()

    def _find(self, spec: Any) -> ServedModel:
        return find_model(self.services.engine, *_named(spec))


_Result = Callable[[Mapping[str, Array], Signature, int], Any]


def _named(spec: Any) -> tuple[str, str | None, str | None]:
    """Name, version and label of a ``ModelSpec``."""
    if not spec.name:
        raise InvalidArgument("Missing ModelSpec: the request names no model")
    choice = spec.WhichOneof("version_choice")
    if choice is None:
        return spec.name, None, None
    if choice == "version_label":
        return spec.name, None, spec.version_label
    return spec.name, str(spec.version.value), None


def _parse(kind: Any, call: Call) -> Any:
    try:
        return kind.FromString(call.message)
    except DecodeError:
        raise InvalidArgument(f"the message is no {kind.DESCRIPTOR.full_name}") from None


def _classification(outputs: Mapping[str, Array], signature: Signature, rows: int) -> Any:
    result = _CLASSIFICATION()
    for classes in to_classes(outputs, signature, rows):
        held = result.classifications.add()
        for label, score in classes:
            held.classes.add(label=label, score=score)
    return result


def _regression(outputs: Mapping[str, Array], signature: Signature, rows: int) -> Any:
    result = _REGRESSION()
    for value in to_numbers(outputs, signature, rows):
        result.regressions.add(value=value)
    return result


_TASKS: Final[Mapping[str, tuple[str, _Result]]] = {
    CLASSIFY_METHOD: ("classification_result", _classification),
    REGRESS_METHOD: ("regression_result", _regression),
}


def _describe(signature: Signature, message: Any) -> None:
    """Fill a ``SignatureDef``."""
    described = signature_def(signature)
    message.method_name = described["method_name"]
    for side in ("inputs", "outputs"):
        for name, info in described[side].items():
            shape = info["tensor_shape"]
            held = getattr(message, side)[name]
            held.name = info["name"]
            held.dtype = info["dtype"]
            held.tensor_shape.unknown_rank = shape["unknown_rank"]
            for dim in shape["dim"]:
                held.tensor_shape.dim.add(size=int(dim["size"]))
