"""`python -m service.simulator` starts the simulator."""

import argparse
import sys

from service.simulator import command

parser = argparse.ArgumentParser(
    prog="python -m service.simulator",
    description="A Claude API, with Gemini and OpenAI beside it, that runs without a key.",
    epilog=command.EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
command.add_arguments(parser)
sys.exit(command.run(parser.parse_args()))
