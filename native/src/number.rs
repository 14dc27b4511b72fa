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

/// How many digits the bytes begin with, and `before` with these digits after it. Of more than 19 digits, the value is of no use.
#[inline]
fn digits_of(bytes: &[u8], before: u64) -> (usize, u64) {
    let mut value = before;
    for (at, byte) in bytes.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return (at, value);
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    (bytes.len(), value)
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
