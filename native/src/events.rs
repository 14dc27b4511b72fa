//! Ticks and bars as decoders find them, and the rules that every one of them keeps.

use std::borrow::Cow;

const NS_PER_US: i64 = 1_000;
const NS_PER_MS: i64 = 1_000_000;
const NS_PER_S: i64 = 1_000_000_000;
const EARLIEST_NS: i64 = 631_152_000 * NS_PER_S; // 1990-01-01
const LATEST_NS: i64 = 4_102_444_800 * NS_PER_S; // 2100-01-01
/// A count of this size or more is in microseconds, a smaller one in milliseconds.
const MICROSECONDS_FROM: i64 = 100_000_000_000_000;
/// The most bytes that a text may have.
const LONGEST_TEXT: usize = 1_024;

/// The provider's own id of a trade.
#[derive(Clone, Debug)]
pub enum Id<'a> {
    Number(i64),
    Text(Cow<'a, str>),
}

/// A trade or a quote. A side of a quote without a price has no size.
#[derive(Clone, Debug, Default)]
pub struct Tick<'a> {
    /// Its number in its frame.
    pub index: u32,
    pub channel: &'a str,
    pub quote: bool,
    pub symbol: Cow<'a, str>,
    pub ts_ns: Option<i64>,
    pub bid: Option<f64>,
    pub ask: Option<f64>,
    pub bid_size: Option<f64>,
    pub ask_size: Option<f64>,
    pub last: Option<f64>,
    pub volume: Option<f64>,
    pub side: Option<&'static str>,
    pub exchange: Cow<'a, str>,
    pub sequence: Option<i64>,
    pub trade_id: Option<Id<'a>>,
    pub conditions: Option<Cow<'a, str>>,
}

#[derive(Clone, Debug, Default)]
pub struct Bar<'a> {
    pub index: u32,
    pub channel: &'a str,
    pub symbol: Cow<'a, str>,
    pub ts_ns: i64,
    pub interval: &'a str,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    pub vwap: Option<f64>,
    pub trades: Option<i64>,
    pub last: bool,
    pub exchange: &'a str,
    /// When the provider sent it.
    pub sent_ns: Option<i64>,
}

/// What one frame holds.
#[derive(Default)]
pub struct Events<'a> {
    pub ticks: Vec<Tick<'a>>,
    pub bars: Vec<Bar<'a>>,
}

/// Decodes the frames of one feed.
pub trait Decoder {
    /// Adds what a frame holds to `events`. `None`: the frame has something that this code does not understand.
    fn frame<'a>(&'a self, frame: &'a [u8], events: &mut Events<'a>) -> Option<()>;
}

/// A count of milliseconds or microseconds since 1970 as ns.
pub fn epoch_ns(count: i64) -> Option<i64> {
    let unit = if count >= MICROSECONDS_FROM { NS_PER_US } else { NS_PER_MS };
    (count > EARLIEST_NS / unit && count < LATEST_NS / unit).then(|| count * unit)
}

pub fn in_range(ns: i64) -> Option<i64> {
    (ns > EARLIEST_NS && ns < LATEST_NS).then_some(ns)
}

/// `2021-02-22T15:51:44.208Z` as ns since 1970. The second may have up to nine more digits.
pub fn rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (moment, rest) = bytes.split_at_checked(19)?;
    let number = |from: usize, to: usize| {
        moment[from..to].iter().try_fold(0i64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| moment[*at] != *mark) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days = *month_days.get(usize::try_from(month - 1).ok()?)?;
    if day < 1 || day > days || hour > 23 || minute > 59 || second > 59 || !(1990..2100).contains(&year) {
        return None;
    }
    let fraction = match rest {
        [b'Z'] => &[],
        [b'.', digits @ .., b'Z'] if (1..=9).contains(&digits.len()) => digits,
        _ => return None,
    };
    let mut ns = 0;
    for at in 0..9 {
        let digit = fraction.get(at).copied().unwrap_or(b'0');
        ns = ns * 10 + i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    let before: i64 = month_days[..(month - 1) as usize].iter().sum();
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let since_1970 = (year - 1970) * 365 + leaps(year - 1) - leaps(1969) + before + day - 1;
    in_range((((since_1970 * 24 + hour) * 60 + minute) * 60 + second) * NS_PER_S + ns)
}

/// A text that is not empty and not too long.
pub fn named(text: &str) -> Option<&str> {
    (!text.is_empty() && text.len() <= LONGEST_TEXT).then_some(text)
}

/// A text that is not too long.
pub fn short(text: &str) -> Option<&str> {
    (text.len() <= LONGEST_TEXT).then_some(text)
}

/// The price and size of one side of a quote; both are absent if the price is zero or absent.
pub fn side_of(price: Option<f64>, size: Option<f64>) -> (Option<f64>, Option<f64>) {
    match price.filter(|price| *price > 0.0) {
        Some(price) => (Some(price), size),
        None => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond_or_not_at_all() {
        assert_eq!(rfc3339("2021-02-22T15:51:44.208Z"), Some(1_614_009_104_208_000_000));
        assert_eq!(rfc3339("2024-02-29T23:59:59.123456789Z"), Some(1_709_251_199_123_456_789));
        assert_eq!(rfc3339("2000-03-01T00:00:00Z"), Some(951_868_800_000_000_000));
        for text in [
            "",
            "2021-02-22T15:51:44",
            "2021-02-22T15:51:44.Z",
            "2021-02-22T15:51:44.1234567890Z",
            "2021-02-29T15:51:44Z",
            "2021-13-01T00:00:00Z",
            "2021-00-01T00:00:00Z",
            "2021-01-00T00:00:00Z",
            "2021-01-01T24:00:00Z",
            "2021-01-01T00:00:60Z",
            "2021-01-01 00:00:00Z",
            "2021-01-01T00:00:00+00:00",
            "1989-12-31T23:59:59Z",
            "2100-01-01T00:00:00Z",
            "2021-01-01T00:00:00.1aZ",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
        assert_eq!(epoch_ns(1_723_161_255_342), Some(1_723_161_255_342_000_000));
        assert_eq!(epoch_ns(1_723_161_255_342_123), Some(1_723_161_255_342_123_000));
        assert_eq!(epoch_ns(1_723_161_255), None);
    }
}
