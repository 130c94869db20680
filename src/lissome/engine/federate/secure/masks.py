"""The arithmetic of secure aggregation: keys, masks, shares of secrets, and numbers in whole steps."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lissome.core.errors import FederationError
from lissome.core.optional import optional_import

PRIME = 2**521 - 1
"""Field of the shares: larger than any secret of 32 bytes."""

SECRET = 32
"""Bytes of a secret."""

STEPS = 2**20
"""Whole steps from 0 to the largest number of an update; fewer than 2¹¹ clients fit into a sum modulo 2³²."""

MOST = 2**11 - 1
"""Clients whose sum fits."""

FEWEST = 3
"""Clients of a sum that hides each: of two, one takes its own away."""

CUT, STEP, WANTED = "cut", "step", "wanted"
"""Numbers by which a client says that the largest number does not suit its update; see `unsuited`."""

_MOST_CUT, _COARSEST, _HUGE = 0.01, 0.1, 1e30

Words = NDArray[np.uint32]


def public_key(secret: bytes) -> bytes:
    """Return the public half of an X25519 key."""
    x25519 = optional_import("cryptography.hazmat.primitives.asymmetric.x25519", extra="federate")
    key: bytes = x25519.X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return key


def agreed(secret: bytes, public: bytes, purpose: str) -> bytes:
    """Return the 32 bytes that the holders of two keys agree on, for one purpose.

    Raises:
        FederationError: When the public half is none.
    """
    x25519 = optional_import("cryptography.hazmat.primitives.asymmetric.x25519", extra="federate")
    try:
        other = x25519.X25519PublicKey.from_public_bytes(public)
        shared: bytes = x25519.X25519PrivateKey.from_private_bytes(secret).exchange(other)
    except ValueError as error:
        raise FederationError(f"a public key is not usable ({error})") from error
    return derived(shared, purpose)


def usable(public: bytes) -> bool:
    """Whether one can agree on something with the holder of a public half: with some points nobody can."""
    try:
        agreed(secrets.token_bytes(SECRET), public, "any")
    except FederationError:
        return False
    return True


def derived(secret: bytes, purpose: str) -> bytes:
    """Return 32 bytes that follow from a secret, for one purpose."""
    hashes = optional_import("cryptography.hazmat.primitives.hashes", extra="federate")
    hkdf = optional_import("cryptography.hazmat.primitives.kdf.hkdf", extra="federate")
    made = hkdf.HKDF(algorithm=hashes.SHA256(), length=SECRET, salt=None, info=purpose.encode())
    key: bytes = made.derive(secret)
    return key


def stream(seed: bytes, count: int) -> Words:
    """Return pseudo-random words, uint32[count]: ChaCha20 of the seed."""
    ciphers = optional_import("cryptography.hazmat.primitives.ciphers", extra="federate")
    cipher = ciphers.Cipher(ciphers.algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * count)), dtype="<u4")


def sealed(key: bytes, content: bytes) -> bytes:
    """Encrypt and authenticate; a key seals one content only."""
    aead = optional_import("cryptography.hazmat.primitives.ciphers.aead", extra="federate")
    box: bytes = aead.ChaCha20Poly1305(key).encrypt(bytes(12), content, None)
    return box


def opened(key: bytes, box: bytes) -> bytes:
    """Decrypt what `sealed` made.

    Raises:
        FederationError: When it was changed, or is for another key.
    """
    aead = optional_import("cryptography.hazmat.primitives.ciphers.aead", extra="federate")
    exceptions = optional_import("cryptography.exceptions", extra="federate")
    try:
        content: bytes = aead.ChaCha20Poly1305(key).decrypt(bytes(12), box, None)
    except (exceptions.InvalidTag, ValueError) as error:
        raise FederationError("a share was changed on its way, or is for somebody else") from error
    return content


def split(secret: bytes, places: Sequence[int], needed: int) -> dict[int, int]:
    """Share a secret (Shamir 1979): any `needed` shares restore it, fewer tell nothing.

    Args:
        secret: 32 bytes.
        places: Distinct numbers above 0, one for each share.
        needed: How many restore it.
    """
    factors = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(needed - 1))]
    found = {}
    for place in places:
        value = 0
        for factor in reversed(factors):
            value = (value * place + factor) % PRIME
        found[place] = value
    return found


def joined(shares: Mapping[int, int]) -> bytes:
    """Restore a secret from enough shares, by place.

    Raises:
        FederationError: When what they give is no secret.
    """
    total = 0
    for place, value in shares.items():
        top = bottom = 1
        for other in shares:
            if other != place:
                top = top * -other % PRIME
                bottom = bottom * (place - other) % PRIME
        total = (total + value * top * pow(bottom, -1, PRIME)) % PRIME
    if total >= 1 << (8 * SECRET):
        raise FederationError("the shares do not fit together; one of them is wrong")
    return total.to_bytes(SECRET, "big")


def in_steps(tensors: Mapping[str, Tensor], weight: float, largest: float) -> Words:
    """Turn weighted tensors, by name in order, and their weight into whole steps modulo 2³², uint32[n + 1].

    Args:
        tensors: Numbers beyond ±`largest` are cut off.
        weight: In [0, 1].
        largest: What `STEPS` steps stand for.
    """
    flat = torch.cat([tensors[name].detach().cpu().double().flatten() for name in sorted(tensors)])
    scaled = flat.clamp(-largest, largest) * (weight / largest)
    steps = torch.cat([scaled, torch.tensor([weight], dtype=torch.float64)]) * STEPS
    return steps.round().long().numpy().astype(np.uint32)


def unsuited(tensors: Mapping[str, Tensor], largest: float) -> dict[str, float]:
    """Return how badly `largest` suits what `in_steps` is given; nothing where it does.

    `CUT` is the share of the numbers that change by more, `STEP` a step as a share of their root mean square. `WANTED`
    would suit: the next power of ten beyond twice the largest, which tells no more of an update than it must.
    """
    flat = torch.cat([one.detach().cpu().double().abs().flatten() for one in tensors.values()])
    changed = flat[(flat > 0) & flat.isfinite()]
    if not len(changed):
        return {}
    cut = float((changed > largest).double().mean())
    step = min(_HUGE, largest / STEPS / float(changed.square().mean().sqrt()))
    if cut < _MOST_CUT and step < _COARSEST:
        return {}
    return {CUT: cut, STEP: step, WANTED: 10.0 ** math.ceil(math.log10(2 * float(changed.max())))}


def from_steps(words: Words, templates: Mapping[str, Tensor], largest: float) -> dict[str, Tensor]:
    """Return the weighted mean that a sum of `in_steps` stands for, float64, of the templates' shapes.

    Raises:
        FederationError: When it is no such sum: of no weight, or with a mean beyond `largest`.
    """
    signed = torch.from_numpy(words.astype(np.int32).astype(np.int64)).double()
    if not signed[-1] > 0:
        raise FederationError("the sum has no weight, so masks are left in it; the round is void")
    if bool((signed[:-1].abs() > signed[-1]).any()):  # every summand is at most its weight
        raise FederationError("the sum is larger than its summands can be: masks are left in it, or somebody cheats")
    mean, found, start = signed[:-1] * largest / signed[-1], dict[str, Any](), 0
    for name in sorted(templates):
        size = templates[name].numel()
        found[name] = mean[start : start + size].view(templates[name].shape)
        start += size
    return found
