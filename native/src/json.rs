//! Reads JSON strictly. What is rare, such as an escape or an exponent, is not understood.

use crate::cursor::{Cursor, Expected, Key};
use crate::events::rfc3339;
use crate::number::{Number, nearest};

/// How deep a value that nobody reads may nest.
const DEEPEST: usize = 8;
/// The most bytes of a text that nobody reads if it may be a number. Python counts the numbers that float64 changes, in texts too.
const IDLE_TEXT: usize = 15;
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// How many bytes of a little-endian word come before the first quotation mark, backslash or control character.
fn plain(word: u64) -> u32 {
    let none = |of: u64| of.wrapping_sub(ONES) & !of;
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    let special = none(word ^ (ONES * u64::from(b'"'))) | none(word ^ (ONES * u64::from(b'\\'))) | controls;
    (special & HIGHS).trailing_zeros() / 8
}

fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// Whether a text can be left unread.
pub fn is_idle(text: &str) -> bool {
    text.len() <= IDLE_TEXT || !text.starts_with(|first: char| "-.0123456789".contains(first))
}

pub struct Json<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Json<'a> {
    /// `None` if the frame is not UTF-8.
    pub fn of(frame: &'a [u8]) -> Option<Json<'a>> {
        Some(Json { text: std::str::from_utf8(frame).ok()?, at: 0 })
    }

    fn here(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// The next byte that is no white space. It is not taken.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        match self.here()? {
            0..=b' ' => self.after_space(),
            byte => Some(byte),
        }
    }

    #[cold]
    fn after_space(&mut self) -> Option<u8> {
        while matches!(self.here()?, b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
        self.here()
    }

    /// Moves over this byte if it is the next.
    #[inline]
    fn taken(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    #[inline]
    pub fn take(&mut self, byte: u8) -> Option<()> {
        self.taken(byte).then_some(())
    }

    /// `Some` if nothing but white space is left.
    pub fn end(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    fn word(&self) -> Option<u64> {
        self.rest().first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn number(&mut self) -> Option<Number> {
        self.peek()?;
        let (number, length) = Number::prefix(self.rest())?;
        if matches!(self.rest().get(length), Some(b'e' | b'E')) {
            return None;
        }
        self.at += length;
        Some(number)
    }

    /// A decimal number in quotation marks.
    pub fn decimal(&mut self) -> Option<f64> {
        self.take(b'"')?;
        let (number, length) = Number::prefix(self.rest())?;
        self.at += length + 1;
        if self.text.as_bytes().get(self.at - 1) == Some(&b'"') { number.float() } else { None }
    }

    /// The nearest float64 of a number in quotation marks, whatever its length.
    pub fn nearest(&mut self) -> Option<f64> {
        nearest(self.text()?)
    }

    fn literal(&mut self, word: &str) -> Option<()> {
        let here = self.rest().starts_with(word.as_bytes());
        self.at += if here { word.len() } else { 0 };
        here.then_some(())
    }

    fn skipped(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'"' => is_idle(self.text()?).then_some(()),
            b'0'..=b'9' => self.number()?.idle().then_some(()),
            b'-' => {
                self.at += 1;
                self.here()?.is_ascii_digit().then(|| self.number())??.idle().then_some(())
            }
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            b'[' => {
                let depth = depth.checked_sub(1)?;
                self.list(|cursor| cursor.skipped(depth)).map(|_| ())
            }
            b'{' => {
                let (depth, mut left) = (depth.checked_sub(1)?, self.open()?);
                while self.key(&mut left)?.is_some() {
                    self.skipped(depth)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}

impl<'a> Cursor<'a> for Json<'a> {
    fn open(&mut self) -> Option<usize> {
        self.take(b'{').map(|()| 0)
    }

    /// `left`: 0 before the first name, 1 after it.
    #[inline]
    fn key(&mut self, left: &mut usize) -> Option<Option<Key>> {
        let mut first = self.peek()?;
        self.at += 1;
        if first == b'}' {
            return Some(None);
        }
        if *left == 1 {
            (first == b',').then_some(())?;
            first = self.peek()?;
            self.at += 1;
        }
        *left = 1;
        (first == b'"').then_some(())?;
        let key = match self.word().map(|word| (word, plain(word))) {
            Some((word, length)) if length < 8 && word >> (8 * length) & 0xff == u64::from(b'"') => {
                self.at += length as usize + 1;
                Key::in_word(word, length)
            }
            _ => {
                self.at -= 1;
                Key::of(self.text()?)
            }
        };
        self.take(b':')?;
        Some(Some(key))
    }

    #[inline]
    fn expected(&mut self, name: Expected, left: &mut usize) -> bool {
        let first = 1 - *left; // the first name has no comma before it
        let here = self.word().is_some_and(|word| word & (name.mask >> (8 * first)) == name.word >> (8 * first));
        if here {
            self.at += name.length - first;
            *left = 1;
        }
        here
    }

    fn null(&mut self) -> bool {
        self.peek() == Some(b'n') && self.literal("null").is_some()
    }

    #[inline]
    fn text(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let begin = self.at;
        while let Some(word) = self.word() {
            let length = plain(word);
            self.at += length as usize;
            if length < 8 {
                break;
            }
        }
        while is_plain(self.here()?) {
            self.at += 1;
        }
        let end = self.at;
        self.at += 1;
        if self.text.as_bytes()[end] == b'"' { self.text.get(begin..end) } else { None }
    }

    fn int(&mut self) -> Option<i64> {
        self.number()?.int()
    }

    fn float(&mut self) -> Option<f64> {
        self.number()?.float()
    }

    fn flag(&mut self) -> Option<bool> {
        if self.peek()? == b't' { self.literal("true").map(|()| true) } else { self.literal("false").map(|()| false) }
    }

    fn time(&mut self) -> Option<i64> {
        rfc3339(self.text()?)
    }

    fn list(&mut self, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<bool> {
        if !self.taken(b'[') {
            return Some(false);
        }
        if self.taken(b']') {
            return Some(true);
        }
        loop {
            each(self)?;
            if self.taken(b']') {
                return Some(true);
            }
            self.take(b',')?;
        }
    }

    fn skip(&mut self) -> Option<()> {
        self.skipped(DEEPEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(text: &str) -> Option<()> {
        let mut cursor = Json::of(text.as_bytes())?;
        cursor.skip()?;
        cursor.end()
    }

    #[test]
    fn what_is_not_plain_json_is_not_understood() {
        assert!(
            skipped(r#" { "a" : [ 1 , "x" , null ] , "b" : { "longer name" : [ -1.5 , [ ] ] } , "d" : true , "é": "€ and more" } "#)
                .is_some()
        );
        for text in [
            "",
            "{",
            "{}x",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{,}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":.5}"#,
            r#"{"a":1e3}"#,
            r#"{"a":+1}"#,
            r#"{"a":tru}"#,
            r#"{"a":nullx}"#,
            r#"{"a":"\n"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":[1,]}"#,
            r#"{"a":[1 2]}"#,
            "- 1",
            r#"{"a":{"b":1234567890123456}}"#,
            r#"{"a":-1234567890123456}"#,
            r#"[[[[[[[[[[1]]]]]]]]]]"#,
            r#"{a:1}"#,
            r#"{'a':1}"#,
            r#"{"a":"1234567890123456"}"#,
            r#"{"a" 1}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":"12345678"#,
            r#"{"abcdefgh":1"#,
            "{\"a\nb\":1}",
        ] {
            assert_eq!(skipped(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_null_and_no_number_is_not_moved_over() {
        for text in ["nul*10", "nu", "1e5", "01"] {
            let mut cursor = Json::of(text.as_bytes()).unwrap();
            assert!(!cursor.null() && cursor.float().is_none());
            assert_eq!(cursor.at, 0, "{text}");
        }
    }

    #[test]
    fn a_text_ends_at_its_quotation_mark_wherever_that_stands() {
        for length in 0..20 {
            let text = "x".repeat(length);
            assert_eq!(Json::of(format!("\"{text}\"").as_bytes()).unwrap().text(), Some(text.as_str()));
            assert_eq!(Json::of(format!("\"{text}\\\"").as_bytes()).unwrap().text(), None);
            assert_eq!(Json::of(format!("\"{text}").as_bytes()).unwrap().text(), None);
            let mut left = 0;
            let named = format!("\"{text}\":").into_bytes();
            assert_eq!(Json::of(&named).unwrap().key(&mut left), Some(Some(Key::of(&text))));
        }
    }
}
