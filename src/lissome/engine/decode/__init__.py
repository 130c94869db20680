"""The decoder engine: a whole model in compiled code, from one file of nested weights, without torch."""

from lissome.engine.decode.decoder import Decoder, DecoderSettings
from lissome.engine.decode.session import Sampling, Session
from lissome.engine.decode.writing import Order, Piece, write

__all__ = ["Decoder", "DecoderSettings", "Order", "Piece", "Sampling", "Session", "write"]
