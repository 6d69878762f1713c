"""`jaxcam app`: the page in the browser."""

from jaxcam.cli._common import add_model, count, keep_programs, pixels_at_most


def add(commands) -> None:
    """Adds the command and its arguments to the parser."""
    parser = commands.add_parser("app", help="a page in the browser: drop a photograph, click a class, compare methods")
    parser.set_defaults(run=run)
    add_model(parser, "--model", default="efficientnet_lite0")
    parser.add_argument("--layer", metavar="PATH", help="layer for the CAM methods (default: the model's own)")
    host = "address to listen at; 0.0.0.0 lets other machines in (default: 127.0.0.1, this machine alone)"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host)
    parser.add_argument("--port", type=count, metavar="N", help="(default: the first free one from 7860 on)")
    pixels = "most pixels of an image that is decoded (default: 89 million)"
    parser.add_argument("--max-pixels", type=count, metavar="N", help=pixels)


def run(args) -> None:
    """Loads the model, and serves the page until it is interrupted."""
    keep_programs()
    import jaxcam

    try:
        with pixels_at_most(args.max_pixels):
            classifier = jaxcam.load(args.model, architecture=args.architecture)
            jaxcam.app.serve(classifier, args.layer, host=args.host, port=args.port)
    except ImportError as error:
        raise ValueError(str(error)) from error
