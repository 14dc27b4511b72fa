//! What both codecs offer to the decoders: a place in a frame that moves over one value after another.
//!
//! Every function returns `None` for what it does not understand. The frame then goes to the Python decoder, which says what is right.

/// A name of up to eight bytes in one word, so that comparing two is one instruction. Longer names are all alike: no column needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// No name has these bytes: they are not UTF-8.
    const LONG: Key = Key(u64::MAX);

    pub const fn of(name: &str) -> Key {
        let bytes = name.as_bytes();
        if bytes.len() > 8 {
            return Key::LONG;
        }
        let (mut word, mut at) = (0, 0);
        while at < bytes.len() {
            word |= (bytes[at] as u64) << (8 * at);
            at += 1;
        }
        Key(word)
    }

    /// The name that is the first `length` bytes, fewer than eight, of a little-endian word.
    pub fn in_word(word: u64, length: u32) -> Key {
        Key(word & ((1 << (8 * length)) - 1))
    }
}

/// A short name as JSON usually has it: `,"name":`, without white space, in one word.
#[derive(Clone, Copy)]
pub struct Expected {
    pub word: u64,
    pub mask: u64,
    pub length: usize,
}

impl Expected {
    /// A name of more than four bytes does not fit, and is never expected.
    pub const fn of(name: &str) -> Expected {
        if name.len() > 4 {
            return Expected { word: 1, mask: 0, length: 0 };
        }
        let length = name.len() + 4;
        let before = (b',' as u64) | (b'"' as u64) << 8 | Key::of(name).0 << 16;
        let word = before | (b'"' as u64) << (8 * (length - 2)) | (b':' as u64) << (8 * (length - 1));
        Expected { word, mask: u64::MAX >> (64 - 8 * length), length }
    }
}

pub trait Cursor<'a> {
    /// Begins an object. What it returns belongs to `key`.
    fn open(&mut self) -> Option<usize>;

    /// The next name in an object, before its value; `Some(None)` at the object's end.
    fn key(&mut self, left: &mut usize) -> Option<Option<Key>>;

    /// Moves over this name if it is the next one and is written as providers usually write it.
    fn expected(&mut self, _name: Expected, _left: &mut usize) -> bool {
        false
    }

    /// Moves over a null if there is one.
    fn null(&mut self) -> bool;

    fn text(&mut self) -> Option<&'a str>;

    /// A whole number from 0 that fits 64 bits with a sign.
    fn int(&mut self) -> Option<i64>;

    /// A finite number from 0 that float64 gives back as it was written.
    fn float(&mut self) -> Option<f64>;

    fn flag(&mut self) -> Option<bool>;

    /// A time in ns since 1970.
    fn time(&mut self) -> Option<i64>;

    /// Calls `each` before every value of a list. `Some(false)`: here is no list.
    fn list(&mut self, each: impl FnMut(&mut Self) -> Option<()>) -> Option<bool>;

    /// Moves over a value that nobody reads.
    fn skip(&mut self) -> Option<()>;

    /// A finite number above zero.
    fn price(&mut self) -> Option<f64> {
        self.float().filter(|price| *price > 0.0)
    }

    /// `Some(None)` for a null.
    fn or_null<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.null() { Some(None) } else { read(self).map(Some) }
    }
}

/// Reads the rest of an object into one `Option` for each named field. Other fields are skipped, and a field that is there twice is not
/// understood, nor is one that was read before: `read!(cursor, left, not "tag", "p" price: price, "s" size: float)`.
macro_rules! read {
    ($cursor:expr, $left:expr, $(not $tag:literal,)? $($key:literal $name:ident: $read:expr),+ $(,)?) => {
        $(let mut $name = None;)+
        // Most events have these fields in this order. From the first that is not where it is expected, each is looked up.
        'in_order: {
            $(if $cursor.expected(const { $crate::cursor::Expected::of($key) }, &mut $left) {
                $name = Some($read($cursor)?);
            } else {
                break 'in_order;
            })+
        }
        while let Some(key) = $cursor.key(&mut $left)? {
            $(if key == const { $crate::cursor::Key::of($tag) } {
                return None;
            })?
            $(if key == const { $crate::cursor::Key::of($key) } {
                if $name.replace($read($cursor)?).is_some() {
                    return None;
                }
            } else)+ {
                $cursor.skip()?;
            }
        }
    };
}
pub(crate) use read;
