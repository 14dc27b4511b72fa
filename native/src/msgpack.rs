//! Reads MessagePack strictly. What is rare, such as another extension than a Timestamp, is not understood.

use crate::cursor::{Cursor, Key};
use crate::events::{in_range, rfc3339};
use crate::number::Number;

pub struct MessagePack<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> MessagePack<'a> {
    pub fn of(bytes: &'a [u8]) -> MessagePack<'a> {
        MessagePack { bytes, at: 0 }
    }

    /// `Some` if nothing is left.
    pub fn end(&self) -> Option<()> {
        (self.at == self.bytes.len()).then_some(())
    }

    fn here(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn uint(&mut self, width: usize) -> Option<u64> {
        Some(self.take(width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn length(&mut self, width: usize) -> Option<usize> {
        usize::try_from(self.uint(width)?).ok()
    }

    /// How many elements or pairs follow. The first byte is `short | count`, or `long` before 16 bits, or `long + 1` before 32 bits.
    fn count(&mut self, short: u8, long: u8) -> Option<usize> {
        match self.uint(1)? as u8 {
            first if first & 0xf0 == short => Some(usize::from(first & 0x0f)),
            first if first == long => self.length(2),
            first if first == long + 1 => self.length(4),
            _ => None,
        }
    }

    /// An integer; `Some(None)` if it is negative.
    fn integer(&mut self) -> Option<Option<u64>> {
        let first = self.uint(1)? as u8;
        match first {
            0x00..=0x7f => Some(Some(u64::from(first))),
            0xcc..=0xcf => self.uint(1 << (first - 0xcc)).map(Some),
            0xd0..=0xd3 => {
                let width = 1 << (first - 0xd0);
                let value = self.uint(width)?;
                Some((value >> (8 * width - 1) == 0).then_some(value))
            }
            0xe0..=0xff => Some(None),
            _ => None,
        }
    }

    /// A Timestamp of 32, 64 or 96 bits.
    fn timestamp(&mut self) -> Option<i64> {
        let length = match self.uint(1)? as u8 {
            0xd6 => 4,
            0xd7 => 8,
            0xc7 => self.length(1)?,
            _ => return None,
        };
        if self.uint(1)? != 0xff {
            return None;
        }
        let (ns, seconds) = match length {
            4 => (0, self.uint(4)?),
            8 => {
                let both = self.uint(8)?;
                (both >> 34, both & 0x3_ffff_ffff)
            }
            12 => (self.uint(4)?, self.uint(8)?),
            _ => return None,
        };
        let whole_ns = i64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?;
        if ns < 1_000_000_000 { whole_ns.checked_add(ns as i64) } else { None }
    }
}

impl<'a> Cursor<'a> for MessagePack<'a> {
    fn open(&mut self) -> Option<usize> {
        self.count(0x80, 0xde)
    }

    /// `left`: how many pairs are left.
    fn key(&mut self, left: &mut usize) -> Option<Option<Key>> {
        if *left == 0 {
            return Some(None);
        }
        *left -= 1;
        self.text().map(|name| Some(Key::of(name)))
    }

    fn null(&mut self) -> bool {
        let here = self.here() == Some(0xc0);
        self.at += usize::from(here);
        here
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = match self.uint(1)? as u8 {
            first @ 0xa0..=0xbf => usize::from(first & 0x1f),
            0xd9 => self.length(1)?,
            0xda => self.length(2)?,
            _ => return None,
        };
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn int(&mut self) -> Option<i64> {
        Number::whole(self.integer()??).int()
    }

    fn float(&mut self) -> Option<f64> {
        let float = match self.here()? {
            0xca => {
                self.at += 1;
                f64::from(f32::from_bits(self.uint(4)? as u32))
            }
            0xcb => {
                self.at += 1;
                f64::from_bits(self.uint(8)?)
            }
            _ => return Number::whole(self.integer()??).float(),
        };
        (float.is_finite() && float.is_sign_positive()).then_some(float)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.uint(1)? {
            0xc2 => Some(false),
            0xc3 => Some(true),
            _ => None,
        }
    }

    fn time(&mut self) -> Option<i64> {
        if matches!(self.here()?, 0xc7 | 0xd6 | 0xd7) { in_range(self.timestamp()?) } else { rfc3339(self.text()?) }
    }

    fn list(&mut self, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<bool> {
        if !matches!(self.here()?, 0x90..=0x9f | 0xdc | 0xdd) {
            return Some(false);
        }
        for _ in 0..self.count(0x90, 0xdc)? {
            each(self)?;
        }
        Some(true)
    }

    /// Maps and lists of lists are not understood.
    fn skip(&mut self) -> Option<()> {
        if self.list(MessagePack::single)? { Some(()) } else { self.single() }
    }
}

impl MessagePack<'_> {
    fn single(&mut self) -> Option<()> {
        match self.here()? {
            0xc0 | 0xc2 | 0xc3 => self.take(1).map(|_| ()),
            0xca => self.take(5).map(|_| ()),
            0xcb => self.take(9).map(|_| ()),
            0xa0..=0xbf | 0xd9 | 0xda => self.text().map(|_| ()),
            0xc7 | 0xd6 | 0xd7 => self.timestamp().map(|_| ()),
            _ => self.integer().map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_read_to_its_last_byte() {
        let frame = [
            0x83, 0xa1, b'p', 0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0xa1, b'c', 0x92, 0xa1, b'@', 0xd0, 0xff, 0xa1, b't', 0xd6, 0xff, 0x60,
            0, 0, 0,
        ];
        let read = |frame: &[u8]| {
            let mut cursor = MessagePack::of(frame);
            let mut left = cursor.open()?;
            crate::cursor::read!(&mut cursor, left, "p" price: MessagePack::price, "t" time: MessagePack::time);
            cursor.end()?;
            Some((price?, time?))
        };
        assert_eq!(read(&frame), Some((1.5, 0x6000_0000 * 1_000_000_000)));
        for end in 0..frame.len() {
            assert_eq!(read(&frame[..end]), None);
        }
        assert_eq!(read(&[&frame[..], &[0xc0]].concat()), None);
    }
}
