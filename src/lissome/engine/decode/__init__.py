"""The decoder engine: a whole model in compiled code, from one file of nested weights, without torch."""

from lissome.engine.decode.decoder import Decoder, DecoderSettings
from lissome.engine.decode.session import Sampling, Session

__all__ = ["Decoder", "DecoderSettings", "Sampling", "Session"]
