//! Numbers as bytes, for what workers leave for each other.

use kit::prelude::*;

/// Eight bytes, little-endian: keys and times, which are large.
#[inline(never)]
pub(crate) fn put_u64(to: &mut Vec<u8>, number: u64) {
    to.extend_from_slice(&number.to_le_bytes());
}

/// What is small as a rule: seven bits in a byte, the lowest first, and the eighth where more follow (LEB128).
#[inline(never)]
pub(crate) fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        let [low, ..] = number.to_le_bytes();
        to.push(low | 0x80);
        number >>= 7;
    }
    let [low, ..] = number.to_le_bytes();
    to.push(low);
}

/// How many there are of what follows.
pub(crate) fn put_count<T>(to: &mut Vec<u8>, items: &[T]) {
    put_varint(to, u64::try_from(items.len()).unwrap_or(u64::MAX));
}

/// What is left to be read. Whatever is not there is `None`.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    #[inline(never)]
    pub(crate) fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    #[inline(never)]
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            // Of the tenth byte one bit has room.
            if bits.leading_zeros() < shift {
                return None;
            }
            number |= bits.checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        u32::try_from(self.varint()?).ok()
    }

    /// As many as the count says that stands first. Room is made only for what was read: a count may say anything.
    pub(crate) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.varint()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
