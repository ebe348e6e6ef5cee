"""`vidembed serve`."""

from __future__ import annotations

import ipaddress
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from vidembed.backbone.options import ModelOptions
from vidembed.cli import options as cli
from vidembed.text import require

if TYPE_CHECKING:
    from vidembed.index.reranking import RerankerOptions
    from vidembed.serve import Engine

KEY_VARIABLE = "VIDEMBED_API_KEY"


def command(
    *,
    folder: Annotated[Path | None, Option("--in", help="Folder of an index to search.")] = None,
    model: cli.IndexModel = None,
    alias: Annotated[
        list[str] | None, Option(help="Another model name that requests may use. Can be repeated.")
    ] = None,
    no_mirror: cli.NoMirror = False,
    rerank: Annotated[bool, Option("--rerank", help="Also load the reranker that belongs to the model.")] = False,
    reranker: Annotated[str | None, Option(help="Load this reranker: a saved one, or a video MLLM.")] = None,
    calibration: Annotated[
        Path | None, Option(help="With a reranker: calibration written by `vidembed calibrate`.")
    ] = None,
    reranker_alias: Annotated[
        list[str] | None, Option(help="With a reranker: another name for it. Can be repeated.")
    ] = None,
    visual_cache: Annotated[Path | None, Option(help="With a reranker: folder to keep visual tokens in.")] = None,
    root: Annotated[
        Path | None, Option(help="Folder whose videos requests may name by URI. Default: requests can read no files.")
    ] = None,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, Option(help="On a loopback address: another host name of this server. Can be repeated.")
    ] = None,
    api_key: Annotated[
        str | None,
        Option(
            envvar=KEY_VARIABLE,
            help="Key that requests must send. Set the variable to keep the key out of the process list.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        Option(
            help="Origin of a site whose scripts may use the server, such as https://example.com; * for any. Can be "
            "repeated. Default: none."
        ),
    ] = None,
    model_options: ModelOptions | None = None,
    max_items: Annotated[int | None, Option(help="Most inputs per embeddings request.")] = None,
    max_videos: Annotated[int | None, Option(help="Most videos per embeddings request.")] = None,
    max_documents: Annotated[int | None, Option(help="Most documents per rerank request.")] = None,
    max_upload_mb: Annotated[int | None, Option(min=1, help="Largest upload, in MiB.")] = None,
    max_uploads: Annotated[int | None, Option(help="Most uploads at once.")] = None,
    max_requests: Annotated[int | None, Option(help="Most requests at once that use the model.")] = None,
    max_queue: Annotated[int | None, Option(help="Most inputs waiting for the model.")] = None,
    batch_items: Annotated[int | None, Option(help="Inputs per batch.")] = None,
    batch_wait_ms: Annotated[float | None, Option(help="Milliseconds that a batch waits for more requests.")] = None,
    decode_workers: Annotated[int | None, Option(min=1, help="Decoding processes.")] = None,
    decode_timeout: Annotated[
        float | None, Option(help="Seconds after which the decoder of a video is killed.")
    ] = None,
    max_memory: Annotated[
        float | None, Option(min=0.5, help="Memory limit of one decoding process, in GiB (Linux).")
    ] = None,
    timeout: Annotated[float | None, Option(help="Seconds after which a request is given up.")] = None,
) -> None:
    """Serve embeddings, reranking and a search page over HTTP."""
    given = locals()  # all options by their names
    require("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client", purpose="serving")
    from vidembed.encoder import load_encoder
    from vidembed.index import VideoIndex
    from vidembed.index.reranking import load_stages
    from vidembed.serve import Engine, Limits
    from vidembed.serve.security import check_api_key, check_origins

    in_bytes = {
        "max_upload_bytes": None if max_upload_mb is None else max_upload_mb * 2**20,
        "decode_memory_bytes": None if max_memory is None else int(max_memory * 2**30),
    }
    limits = cli.fill(Limits, {**given, **in_bytes, "decode_timeout_s": decode_timeout, "timeout_s": timeout})
    check_api_key(api_key)
    check_origins(cors_origin or ())
    if root is not None and not root.is_dir():
        raise ValueError(f"root: {str(root)!r} is not a folder")
    with_reranker = rerank or reranker is not None
    if not with_reranker and (calibration or visual_cache or reranker_alias):
        what = "calibration, visual-cache, reranker-alias"
        raise ValueError(f"{what}: they need a reranker; give --rerank or --reranker NAME too")
    if folder is None and model is None:
        raise ValueError("model: give --model NAME, or an index with --in FOLDER to use its model")
    with _listen(host, port) as listening:  # before the model is loaded, which takes a while
        index = None if folder is None else VideoIndex.open(folder, mirror=not no_mirror)
        name = model or (index.meta.model if index else "")
        load = partial(load_encoder, name, options=model_options)
        meta = None if index is None else index.meta
        if meta is not None:
            load = partial(meta.load_encoder, name, model_options)
        head = None
        if with_reranker:
            how: RerankerOptions = {"calibration": calibration, "visual_cache": visual_cache, "options": model_options}
            layer, grid = (meta.layer, meta.sampling) if meta else (None, None)
            encoder, head = load_stages(load, reranker, model=name, layer=layer, sampling=grid, **how)
        else:
            encoder = load()
        engine = Engine(
            encoder,
            model=_public_name(name),
            aliases=alias or (),
            reranker=head,
            reranker_model=None if head is None else _public_name(reranker or f"{name}-rerank"),
            reranker_aliases=reranker_alias or (),
            index=index,
            root=root,
            limits=limits,
        )
        _run(engine, listening, host, allow_host or [], api_key, cors_origin or [])


def _listen(host: str, port: int) -> socket.socket:
    is_v6 = ":" in host
    family, both = socket.AF_INET6 if is_v6 else socket.AF_INET, is_v6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        raise ValueError(f"host, port: cannot listen on {host!r}, port {port}: {error}") from error


def _public_name(name: str) -> str:
    """Return a model's name without the folders of this machine."""
    path = Path(name)
    return path.name if path.is_absolute() or path.is_dir() else name


def _run(
    engine: Engine, listening: socket.socket, host: str, names: list[str], api_key: str | None, cors_origins: list[str]
) -> None:
    import uvicorn

    from vidembed.serve import create_app
    from vidembed.serve.security import LOOPBACK

    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    # None is any name, on an address that other machines reach
    hosts = [*LOOPBACK, host, *names] if is_loopback else list(names) or None
    app = create_app(engine, api_key=api_key, hosts=hosts, cors_origins=cors_origins)
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    cli.say(f"Serving {engine.model} on http://{shown}:{address[1]}/")
    if not is_loopback and not api_key:
        cli.say(f"Anyone who can reach this address can use the server: give --api-key, or set {KEY_VARIABLE}.")
    if "*" in cors_origins and not api_key:
        cli.say(f"Any web page that is open on this machine can use the server: give --api-key, or set {KEY_VARIABLE}.")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing is decided by the address of a client
        timeout_graceful_shutdown=10,
        limit_concurrency=8 * engine.limits.max_requests,
        workers=1,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again when it has ended in order
        cli.say("Stopped.")
