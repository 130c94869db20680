"""The decoder engine: a whole model in compiled code, from one file of nested weights, without torch."""

from lissome.engine.decode.decoder import Decoder, DecoderSettings

__all__ = ["Decoder", "DecoderSettings"]
