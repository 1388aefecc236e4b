//! What tells models, and what was saved of them, apart.

use super::Chunk;

/// A running hash of bytes, FNV-1a of 64 bits. It finds what differs by accident, not by intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

/// Bytes of a tensor that count.
const FIRST_BYTES: usize = 4096;

impl Fingerprint {
    /// Of nothing.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Of these bytes behind those before.
    pub fn with(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)))
    }

    pub fn value(self) -> u64 {
        self.0
    }

    /// Of the tensor that starts with this chunk, by its name and its first bytes; 0 where a tensor goes on. Those of a model
    /// are combined by `^`: their order in the files is of no matter.
    pub fn of_tensor(chunk: &Chunk<'_>) -> u64 {
        if chunk.first_row > 0 {
            return 0;
        }
        let first = &chunk.bytes[..chunk.bytes.len().min(FIRST_BYTES)];
        Self::new().with(chunk.tensor.name.as_bytes()).with(first).value()
    }
}

#[cfg(test)]
mod tests {
    use super::Fingerprint;

    #[test]
    fn bytes_have_their_published_hashes() {
        // The test vectors of the FNV reference code.
        for (text, hash) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(Fingerprint::new().with(text.as_bytes()).value(), hash, "{text:?}");
        }
        assert_eq!(Fingerprint::new().with(b"foo").with(b"bar"), Fingerprint::new().with(b"foobar"));
    }
}
