//! Polygon.io's frames: arrays of trades, quotes and bars of stocks, options and crypto. Each event begins with its tag, `ev`.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::cursor::{Cursor, Key, read};
use crate::events::{Bar, Decoder, Events, Id, Tick, epoch_ns, named, short, side_of};
use crate::json::Json;

pub struct Polygon {
    pub crypto: bool,
    /// Its codes of exchanges, and of the facilities that report trades off exchange.
    pub exchanges: HashMap<i64, String>,
    pub facilities: HashMap<i64, String>,
}

impl Decoder for Polygon {
    fn frame<'a>(&'a self, frame: &'a [u8], events: &mut Events<'a>) -> Option<()> {
        let mut cursor = Json::of(frame)?;
        let mut index = 0;
        let is_array = cursor.list(|cursor| {
            let mut left = cursor.open()?;
            (cursor.key(&mut left)?? == const { Key::of("ev") }).then_some(())?;
            match (self.crypto, cursor.text()?) {
                (false, "T") => events.ticks.push(Tick { index, ..self.trade(cursor, left)? }),
                (false, "Q") => events.ticks.push(Tick { index, ..self.quote(cursor, left)? }),
                (false, "AM") => events.bars.push(Bar { index, channel: "AM", interval: "1m", ..bar(cursor, left)? }),
                (false, "A") => events.bars.push(Bar { index, channel: "A", interval: "1s", ..bar(cursor, left)? }),
                (true, "XT") => events.ticks.push(Tick { index, ..self.crypto_trade(cursor, left)? }),
                (true, "XQ") => events.ticks.push(Tick { index, ..self.crypto_quote(cursor, left)? }),
                (true, "XA") => events.bars.push(Bar { index, channel: "XA", interval: "1m", ..crypto_bar(cursor, left)? }),
                (true, "XAS") => events.bars.push(Bar { index, channel: "XAS", interval: "1s", ..crypto_bar(cursor, left)? }),
                _ => return None,
            }
            index += 1;
            Some(())
        })?;
        is_array.then_some(())?;
        cursor.end()
    }
}

impl Polygon {
    fn exchange(&self, code: Option<i64>) -> Cow<'_, str> {
        match code {
            None => Cow::Borrowed("composite"),
            Some(code) => match self.exchanges.get(&code) {
                Some(name) => Cow::Borrowed(name),
                None => Cow::Owned(format!("polygon:{code}")),
            },
        }
    }

    fn trade<'a>(&'a self, cursor: &mut Json<'a>, mut left: usize) -> Option<Tick<'a>> {
        read!(cursor, left, not "ev", "sym" symbol: ticker, "x" exchange: Json::int, "i" id: text_or_null, "p" price: Json::price, "s" size: Json::float,
            "ds" exact: exact_size, "c" codes: codes_or_null, "t" time: Json::int, "q" sequence: int_or_null, "trfi" facility: int_or_null);
        let exchange = self.exchange(Some(exchange?));
        let facility = facility.flatten().and_then(|code| self.facilities.get(&code));
        Some(Tick {
            channel: "T",
            symbol: Cow::Borrowed(symbol?),
            ts_ns: Some(epoch_ns(time?)?),
            last: Some(price?),
            volume: exact.flatten().or(Some(size?)),
            exchange: facility.map_or(exchange, |name| Cow::Borrowed(name.as_str())),
            sequence: sequence.flatten().filter(|sequence| *sequence != 0),
            trade_id: id.flatten().map(|id| Id::Text(Cow::Borrowed(id))),
            conditions: joined(&codes.unwrap_or_default())?,
            ..Tick::default()
        })
    }

    fn quote<'a>(&'a self, cursor: &mut Json<'a>, mut left: usize) -> Option<Tick<'a>> {
        read!(cursor, left, not "ev", "sym" symbol: ticker, "bx" bid_exchange: int_or_null, "bp" bid: float_or_null, "bs" bid_size: float_or_null,
            "ax" ask_exchange: int_or_null, "ap" ask: float_or_null, "as" ask_size: float_or_null, "c" codes: codes_or_null,
            "t" time: Json::int, "q" sequence: int_or_null);
        let (bid, bid_size) = side_of(bid.flatten(), bid_size.flatten());
        let (ask, ask_size) = side_of(ask.flatten(), ask_size.flatten());
        Some(Tick {
            channel: "Q",
            quote: true,
            symbol: Cow::Borrowed(symbol?),
            ts_ns: Some(epoch_ns(time?)?),
            bid,
            ask,
            bid_size,
            ask_size,
            exchange: self.exchange(bid_exchange.flatten().filter(|_| bid.is_some()).or(ask_exchange.flatten())),
            sequence: sequence.flatten().filter(|sequence| *sequence != 0),
            conditions: joined(&codes.unwrap_or_default())?,
            ..Tick::default()
        })
    }

    fn crypto_trade<'a>(&'a self, cursor: &mut Json<'a>, mut left: usize) -> Option<Tick<'a>> {
        read!(cursor, left, not "ev", "pair" pair: currencies, "p" price: Json::price, "t" time: Json::int, "s" size: Json::float, "c" codes: codes_or_null,
            "i" id: id_or_null, "x" exchange: Json::int);
        let codes = codes.unwrap_or_default();
        Some(Tick {
            channel: "XT",
            symbol: pair?,
            ts_ns: Some(epoch_ns(time?)?),
            last: Some(price?),
            volume: Some(size?),
            side: if codes.contains(&1) { Some("sell") } else { codes.contains(&2).then_some("buy") },
            exchange: self.exchange(Some(exchange?)),
            trade_id: id.flatten(),
            conditions: joined(&codes)?,
            ..Tick::default()
        })
    }

    fn crypto_quote<'a>(&'a self, cursor: &mut Json<'a>, mut left: usize) -> Option<Tick<'a>> {
        read!(cursor, left, not "ev", "pair" pair: currencies, "bp" bid: float_or_null, "bs" bid_size: float_or_null, "ap" ask: float_or_null,
            "as" ask_size: float_or_null, "t" time: Json::int, "x" exchange: Json::int);
        let (bid, bid_size) = side_of(bid.flatten(), bid_size.flatten());
        let (ask, ask_size) = side_of(ask.flatten(), ask_size.flatten());
        Some(Tick {
            channel: "XQ",
            quote: true,
            symbol: pair?,
            ts_ns: Some(epoch_ns(time?)?),
            bid,
            ask,
            bid_size,
            ask_size,
            exchange: self.exchange(Some(exchange?)),
            ..Tick::default()
        })
    }
}

/// A stock's symbol; an option's without the prefix `O:`.
fn ticker<'a>(cursor: &mut Json<'a>) -> Option<&'a str> {
    let name = cursor.text()?;
    named(name.strip_prefix("O:").unwrap_or(name))
}

/// `BTC-USD` as `BTC/USD`.
fn currencies<'a>(cursor: &mut Json<'a>) -> Option<Cow<'a, str>> {
    named(cursor.text()?).map(|pair| Cow::Owned(pair.replace('-', "/")))
}

fn int_or_null(cursor: &mut Json) -> Option<Option<i64>> {
    cursor.or_null(Json::int)
}

fn float_or_null(cursor: &mut Json) -> Option<Option<f64>> {
    cursor.or_null(Json::float)
}

fn text_or_null<'a>(cursor: &mut Json<'a>) -> Option<Option<&'a str>> {
    cursor.or_null(|cursor| short(cursor.text()?))
}

/// The size with its fraction, which is a text.
fn exact_size(cursor: &mut Json) -> Option<Option<f64>> {
    cursor.or_null(Json::decimal)
}

/// An id, which is a text or a number.
fn id_or_null<'a>(cursor: &mut Json<'a>) -> Option<Option<Id<'a>>> {
    cursor.or_null(|cursor| match cursor.int() {
        Some(id) => Some(Id::Number(id)),
        None => Some(Id::Text(Cow::Borrowed(short(cursor.text()?)?))),
    })
}

/// The codes of conditions: a list, one number, or nothing.
fn codes_or_null(cursor: &mut Json) -> Option<Vec<i64>> {
    if cursor.null() {
        return Some(vec![]);
    }
    let mut codes = vec![];
    let is_list = cursor.list(|cursor| cursor.int().map(|code| codes.push(code)))?;
    if is_list { Some(codes) } else { cursor.int().map(|code| vec![code]) }
}

fn joined(codes: &[i64]) -> Option<Option<Cow<'static, str>>> {
    use std::fmt::Write;

    let Some((first, rest)) = codes.split_first() else { return Some(None) };
    let mut text = first.to_string();
    for code in rest {
        write!(text, ",{code}").ok()?;
    }
    short(&text)?;
    Some(Some(Cow::Owned(text)))
}

fn bar<'a>(cursor: &mut Json<'a>, mut left: usize) -> Option<Bar<'a>> {
    read!(cursor, left, not "ev", "sym" symbol: ticker, "v" volume: Json::float, "dv" exact: exact_size, "vw" vwap: float_or_null, "o" open: Json::price,
        "c" close: Json::price, "h" high: Json::price, "l" low: Json::price, "s" start: Json::int);
    let prices = [open?, high?, low?, close?];
    bar_of(Cow::Borrowed(symbol?), start?, prices, exact.flatten().or(Some(volume?))?, vwap.flatten())
}

fn crypto_bar<'a>(cursor: &mut Json<'a>, mut left: usize) -> Option<Bar<'a>> {
    read!(cursor, left, not "ev", "pair" pair: currencies, "v" volume: Json::float, "dv" exact: exact_size, "vw" vwap: float_or_null, "o" open: Json::price,
        "c" close: Json::price, "h" high: Json::price, "l" low: Json::price, "s" start: Json::int);
    let prices = [open?, high?, low?, close?];
    bar_of(pair?, start?, prices, exact.flatten().or(Some(volume?))?, vwap.flatten())
}

fn bar_of(symbol: Cow<str>, start: i64, [open, high, low, close]: [f64; 4], volume: f64, vwap: Option<f64>) -> Option<Bar> {
    Some(Bar {
        symbol,
        ts_ns: epoch_ns(start)?,
        open,
        high,
        low,
        close,
        volume,
        vwap: vwap.filter(|price| *price > 0.0),
        exchange: "composite",
        ..Bar::default()
    })
}
