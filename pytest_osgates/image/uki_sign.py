"""A .pcrsig for a unified kernel image: policies for PCR 11, signed by a key whose public half is in its .pcrpkey.

What ``systemd-measure sign`` writes (systemd-measure(1)), which wants a TPM for it until version 254.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_osgates.image import uki


@dataclass(frozen=True)
class PolicyKey:
    """An RSA key that signs policies."""

    key: Any = field(repr=False)

    @classmethod
    def made(cls) -> PolicyKey:
        """A new one."""
        # Here, because it takes long, and few need it.
        from cryptography.hazmat.primitives.asymmetric import rsa

        return cls(rsa.generate_private_key(public_exponent=65537, key_size=2048))

    def pem(self) -> bytes:
        """The key itself."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def public_pem(self) -> bytes:
        """For .pcrpkey."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return bytes(self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def policies(self, parts: Mapping[str, bytes], phases: Sequence[str] = ("",)) -> bytes:
        """For .pcrsig: of the image of these sections (its .pcrpkey and .sdmagic among them), one for each phase."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        # systemd src/shared/openssl-util.c, pubkey_fingerprint: of the key as PKCS #1.
        der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
        entries = []
        for phase in phases:
            policy = uki.policy_of(uki.pcr11(parts, phase))
            signature = self.key.sign(policy, padding.PKCS1v15(), hashes.SHA256())
            entries.append(
                {
                    "pcrs": [uki.PCR],
                    "pkfp": hashlib.sha256(der).hexdigest(),
                    "pol": policy.hex(),
                    "sig": base64.b64encode(signature).decode("ascii"),
                }
            )
        return json.dumps({"sha256": entries}).encode("ascii")
