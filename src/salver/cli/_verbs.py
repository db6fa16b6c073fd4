"""The table of verbs: what each is called, what it takes and which file carries it out."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from salver.core.options import Option, options_of

EXPLAIN: Final = "salver.cli._explain:explain"
"""What answers a command line that `salver.cli._parse` leaves alone."""


class Argument(msgspec.Struct, frozen=True, kw_only=True):
    """A positional argument. ``many`` takes all that are left, perhaps none."""

    name: str
    help: str
    many: bool = False


class Verb(msgspec.Struct, frozen=True, kw_only=True):
    """One verb.

    Args:
        name: what the user types.
        summary: one sentence.
        run: ``module:function``; called with arguments and settings by name; returns an exit code or None.
        examples: command lines that work.
        arguments: in order.
        rereads: whether the function takes, instead of settings, what resolves them: ``reread``.
    """

    name: str
    summary: str
    run: str
    examples: tuple[str, ...]
    arguments: tuple[Argument, ...] = ()
    rereads: bool = False

    @property
    def options(self) -> tuple[Option, ...]:
        """The options it takes."""
        return options_of(self.name)


class Invocation(msgspec.Struct, frozen=True):
    """A command line that was understood: flags are option name -> text, or whether a switch is on."""

    verb: Verb
    arguments: dict[str, Any]
    flags: dict[str, str | bool | None]


_BUNDLE: Final = Argument(name="bundle", help="A sealed bundle, such as digits.salver")

VERBS: Final = {
    verb.name: verb
    for verb in (
        Verb(
            name="build",
            summary="Make a model smaller and faster, prove that it is still right, and seal it with the proof.",
            run="salver.cli._build:run",
            arguments=(
                Argument(
                    name="source", help="A trained model: model.onnx, pipeline.skops, pipeline.pkl (--trust-pickle)"
                ),
            ),
            examples=(
                "salver build model.onnx --data val.npz",
                "salver build model.onnx --data val.npz --max-drop 1pp --objective size -o small.salver",
                "salver build pipeline.skops --data test.csv --label species --budget 5m",
            ),
        ),
        Verb(
            name="convert",
            summary="Write a trained model in another format, and prove that it gives the same answers there.",
            run="salver.cli._convert:run",
            arguments=(
                Argument(name="source", help="A trained model: a file that 'salver build' takes, or module:name"),
            ),
            examples=(
                "salver convert model.onnx --to openvino -o model.xml",
                "salver convert net.keras --to tflite --precision int8 --data val.npz -o net.tflite",
                "salver convert nets:make --weights net.safetensors --input 'x:float32[batch,3,224,224]' --to onnx",
            ),
        ),
        Verb(
            name="inspect",
            summary="Show what a bundle holds: signature, lineage, parity, evaluation, sizes; or draw its graph.",
            run="salver.cli._inspect:run",
            arguments=(Argument(name="bundle", help="A sealed bundle; with --graph also a bare model.onnx"),),
            examples=(
                "salver inspect digits.salver",
                "salver inspect digits.salver --json",
                "salver inspect digits.salver --graph -o graph.html",
            ),
        ),
        Verb(
            name="verify",
            summary="Check digests and signature, and replay the golden requests on this machine.",
            run="salver.cli._verify:run",
            arguments=(_BUNDLE,),
            examples=("salver verify digits.salver", "salver verify digits.salver --key public.pem"),
        ),
        Verb(
            name="report",
            summary="Write the build's report as one self-contained HTML page.",
            run="salver.cli._report:run",
            arguments=(_BUNDLE,),
            examples=("salver report digits.salver", "salver report digits.salver -o report.html"),
        ),
        Verb(
            name="serve",
            summary="Serve bundles over REST and gRPC to clients of Triton, KServe, TensorFlow Serving and MLflow.",
            run="salver.cli._serve:run",
            arguments=(
                Argument(
                    name="sources",
                    help="Bundles, a bare model.onnx (served as untested), or a folder models/NAME/VERSION/model.onnx",
                    many=True,
                ),
            ),
            rereads=True,
            examples=(
                "salver serve digits.salver",
                "salver serve models/ --grpc 127.0.0.1:8081 --watch 5s",
                "salver serve digits.salver --http 0.0.0.0:8080 --api-keys keys.toml --tls-cert a.pem --tls-key a.key",
                "salver serve --config salver.toml",
            ),
        ),
        Verb(
            name="stats",
            summary="Tell where a server's time goes, why batches have their size, what was refused, what would help.",
            run="salver.cli._stats:run",
            arguments=(Argument(name="models", help="Models to show; all where none is named", many=True),),
            examples=(
                "salver stats",
                "salver stats digits --every 1s",
                "salver stats digits --url https://models.example.com --api-key-file key.txt --json",
            ),
        ),
        Verb(
            name="predict",
            summary="Run a bundle on examples, in process, without a server.",
            run="salver.cli._predict:run",
            arguments=(
                _BUNDLE,
                Argument(name="input", help="Examples: any file or folder that 'build --data' reads"),
            ),
            examples=(
                "salver predict digits.salver input.npz",
                "salver predict digits.salver input.npz -o answers.npz",
            ),
        ),
        Verb(
            name="bench",
            summary="Put load on a server, ours or a peer's, and measure latency, goodput and cost per request.",
            run="salver.cli._bench:run",
            arguments=(
                Argument(
                    name="url", help="The server: http://host:port, https://, grpc://, grpcs:// or http+unix:///path"
                ),
            ),
            examples=(
                "salver bench http://127.0.0.1:8080 --model digits",
                "salver bench grpc://127.0.0.1:8081 --rate 500/s --slo 50ms --duration 1m",
                "salver bench http://127.0.0.1:8080 --rate 100/s..3200/s --slo 50ms --plot bench.html",
                "salver bench http://127.0.0.1:8080 --scenario single-stream",
            ),
        ),
        Verb(
            name="tune",
            summary="Measure how a bundle is served best on this machine, and write it down for 'salver serve'.",
            run="salver.cli._tune:run",
            arguments=(_BUNDLE,),
            examples=("salver tune digits.salver", "salver tune digits.salver --slo 50ms --cores 2 --budget 2m"),
        ),
        Verb(
            name="plan",
            summary="Say how many workers, cores and nodes a load needs, what it costs, and what binds.",
            run="salver.cli._plan:run",
            examples=(
                "salver plan --bundle digits.salver --rate 20000/s --slo 50ms",
                "salver plan --bundle digits.salver --trace arrivals.jsonl --slo 50ms --availability n-1 --cores 8",
                "salver plan --bundle digits.salver --rate 500/s --slo 1s --price 0.04 --json",
            ),
        ),
        Verb(
            name="doctor",
            summary="Show what this machine offers: CPU features, runtimes, extras and how to get them.",
            run="salver.cli._doctor:run",
            examples=("salver doctor", "salver doctor --json"),
        ),
        Verb(
            name="toolchain",
            summary="List, install or remove converters that run in an environment of their own.",
            run="salver.cli._toolchain:run",
            arguments=(
                Argument(name="words", help="list, install NAME or remove NAME; list where nothing is said", many=True),
            ),
            examples=(
                "salver toolchain",
                "salver toolchain install onnx2tf",
                "salver toolchain remove onnx2tf",
            ),
        ),
        Verb(
            name="keys",
            summary="Make an Ed25519 key pair to sign bundles with, or an API key for callers of a server.",
            run="salver.cli._keys:run",
            examples=(
                "salver keys",
                "salver keys -o keys",
                "salver keys --api dashboard --scopes infer,metadata --expires 90d -o keys.toml",
            ),
        ),
        Verb(
            name="sign",
            summary="Sign a bundle with a private Ed25519 key.",
            run="salver.cli._sign:run",
            arguments=(_BUNDLE,),
            examples=("salver sign digits.salver --key private.pem",),
        ),
    )
}
