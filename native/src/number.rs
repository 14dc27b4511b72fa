//! Decimal numbers from zero as they are written, and the float64 that gives back every digit.

/// From here on, a number has more than 15 digits, and float64 may not hold it as it was written.
const EXACT: u64 = 1_000_000_000_000_000;
const MOST: usize = 19;
const POWERS: [f64; 19] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18];

/// A number without sign and exponent: at most 19 digits, which always fit, and `scale` of them are after the point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number {
    digits: u64,
    scale: usize,
}

impl Number {
    /// Reads digits, and a fraction if there is one. Returns the number and how many bytes it has.
    #[inline]
    pub fn prefix(bytes: &[u8]) -> Option<(Number, usize)> {
        let (whole, mut digits) = digits_of(bytes, 0);
        if whole == 0 || (whole > 1 && bytes[0] == b'0') {
            return None;
        }
        if bytes.get(whole) != Some(&b'.') {
            return (whole <= MOST).then_some((Number { digits, scale: 0 }, whole));
        }
        let scale;
        (scale, digits) = digits_of(&bytes[whole + 1..], digits);
        (scale > 0 && whole + scale <= MOST).then_some((Number { digits, scale }, whole + 1 + scale))
    }

    pub fn whole(digits: u64) -> Number {
        Number { digits, scale: 0 }
    }

    /// The nearest float64, if it gives back every digit. Both operands are exact, so the division rounds once.
    #[inline]
    pub fn float(self) -> Option<f64> {
        let Number { mut digits, mut scale } = self;
        while digits >= EXACT && scale > 0 && digits.is_multiple_of(10) {
            digits /= 10;
            scale -= 1;
        }
        (digits < EXACT).then(|| digits as f64 / POWERS[scale])
    }

    pub fn int(self) -> Option<i64> {
        if self.scale == 0 { i64::try_from(self.digits).ok() } else { None }
    }

    /// Whether it can be left unread. Python counts the numbers that float64 changes under some names, whether a column has them or not.
    pub fn idle(self) -> bool {
        self.digits < EXACT
    }
}

const ZEROS: u64 = 0x3030_3030_3030_3030;
const TENS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// How many digits the bytes begin with, and `before` with these digits after it. Of more than 19 digits, the value is of no use.
#[inline]
fn digits_of(bytes: &[u8], before: u64) -> (usize, u64) {
    let (mut value, mut at) = (before, 0);
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let word = u64::from_le_bytes(*eight);
        let count = leading_digits(word);
        value = value.wrapping_mul(TENS[count]).wrapping_add(value_of(word, count));
        at += count;
        if count < 8 {
            return (at, value);
        }
    }
    while let Some(digit) = bytes.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    (at, value)
}

/// How many of the eight bytes of a little-endian word come before the first that is no digit.
#[inline]
fn leading_digits(word: u64) -> usize {
    let above_zero = word ^ ZEROS;
    let no_digit = (above_zero.wrapping_add(0x0606_0606_0606_0606) | above_zero) & 0xf0f0_f0f0_f0f0_f0f0;
    (no_digit.trailing_zeros() / 8) as usize
}

/// The number that the first `count` of eight digits stand for, computed for pairs, fours and eights at once.
#[inline]
fn value_of(word: u64, count: usize) -> u64 {
    if count == 0 {
        return 0;
    }
    let digits = (word ^ ZEROS) << (64 - 8 * count); // zeros before them
    let pairs = 10 * (digits & 0x00ff_00ff_00ff_00ff) + (digits >> 8 & 0x00ff_00ff_00ff_00ff);
    let fours = 100 * (pairs & 0x0000_ffff_0000_ffff) + (pairs >> 16 & 0x0000_ffff_0000_ffff);
    10_000 * (fours & 0xffff_ffff) + (fours >> 32)
}

/// The nearest float64 of a decimal text of any length.
pub fn nearest(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float_of(text: &str) -> Option<f64> {
        let (number, length) = Number::prefix(text.as_bytes())?;
        if length == text.len() { number.float() } else { None }
    }

    #[test]
    fn digits_count_as_they_stand_wherever_they_end() {
        for length in 0..20 {
            for digits in ["1234567890123456789", "9999999999999999999", "0000000000000000001", "1000000000000000000"] {
                let expected = digits[..length].parse().unwrap_or(0);
                for after in ["", ".", "/", ":", "e", "\"", ",12345678", "\u{b0}", "\0"] {
                    assert_eq!(digits_of(format!("{}{after}", &digits[..length]).as_bytes(), 0), (length, expected), "{length} {after}");
                }
            }
        }
    }

    #[test]
    fn a_number_is_read_as_the_nearest_float_or_not_at_all() {
        for text in ["0", "1", "0.1", "126.55", "61837.63000000", "0.00000001", "123456789012345", "1234567.12345678"] {
            assert_eq!(float_of(text), Some(text.parse().unwrap()), "{text}");
        }
        for text in
            ["", ".", "1.", ".5", "01", "-1", "+1", "1e3", "0.1234567890123456", "1234567890123456789", "18446744073709551616", "1 ", "NaN"]
        {
            assert_eq!(float_of(text), None, "{text}");
        }
    }
}
