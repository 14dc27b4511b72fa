//! Binance's frames: `{"stream":"btcusdt@trade","data":{...}}` with trades, best quotes and klines.

use std::borrow::Cow;

use crate::cursor::{Cursor, Key, read};
use crate::events::{Bar, Decoder, Events, Id, Tick, epoch_ns, named, short, side_of};
use crate::json::Json;

const EXCHANGE: &str = "binance";

pub struct Binance {
    /// The names of the channels with bars, such as `kline_1m`.
    pub bars: Vec<String>,
}

impl Decoder for Binance {
    fn frame<'a>(&'a self, frame: &'a [u8], events: &mut Events<'a>) -> Option<()> {
        let mut cursor = Json::of(frame)?;
        let mut left = cursor.open()?;
        (cursor.key(&mut left)?? == const { Key::of("stream") }).then_some(())?;
        let (_, channel) = cursor.text()?.split_once('@')?;
        (cursor.key(&mut left)?? == const { Key::of("data") }).then_some(())?;
        match channel {
            "trade" => events.ticks.push(trade(&mut cursor)?),
            "aggTrade" => events.ticks.push(aggregate(&mut cursor)?),
            "bookTicker" => events.ticks.push(quote(&mut cursor)?),
            _ => {
                let channel = self.bars.iter().find(|name| *name == channel)?;
                events.bars.push(bar(&mut cursor, channel)?);
            }
        }
        cursor.take(b'}')?;
        cursor.end()
    }
}

/// A decimal number above zero, in quotation marks.
fn above_zero(cursor: &mut Json) -> Option<f64> {
    cursor.decimal().filter(|price| *price > 0.0)
}

/// The time of sending is only read over. Python does not count it, however many digits it has.
fn trade<'a>(cursor: &mut Json<'a>) -> Option<Tick<'a>> {
    let mut left = cursor.open()?;
    read!(cursor, left, "e" event: Json::text, "E" _sent: Json::int, "s" symbol: Json::text, "t" id: Json::int, "p" price: above_zero,
        "q" size: Json::decimal, "T" time: Json::int, "m" maker: Json::flag);
    (event? == "trade").then_some(())?;
    tick("trade", symbol?, id?, price?, size?, time?, maker?)
}

fn aggregate<'a>(cursor: &mut Json<'a>) -> Option<Tick<'a>> {
    let mut left = cursor.open()?;
    read!(cursor, left, "e" event: Json::text, "E" _sent: Json::int, "s" symbol: Json::text, "a" id: Json::int, "p" price: above_zero,
        "q" size: Json::decimal, "T" time: Json::int, "m" maker: Json::flag);
    (event? == "aggTrade").then_some(())?;
    tick("aggTrade", symbol?, id?, price?, size?, time?, maker?)
}

fn tick<'a>(channel: &'a str, symbol: &'a str, id: i64, price: f64, size: f64, time: i64, maker: bool) -> Option<Tick<'a>> {
    Some(Tick {
        channel,
        symbol: Cow::Borrowed(named(symbol)?),
        ts_ns: Some(epoch_ns(time)?),
        last: Some(price),
        volume: Some(size),
        side: Some(if maker { "sell" } else { "buy" }),
        exchange: Cow::Borrowed(EXCHANGE),
        sequence: Some(id),
        trade_id: Some(Id::Number(id)),
        ..Tick::default()
    })
}

/// A best quote, which has no time and no event type.
fn quote<'a>(cursor: &mut Json<'a>) -> Option<Tick<'a>> {
    let mut left = cursor.open()?;
    read!(cursor, left, "u" id: Json::int, "s" symbol: Json::text, "b" bid: Json::decimal, "B" bid_size: Json::decimal,
        "a" ask: Json::decimal, "A" ask_size: Json::decimal);
    let (bid, bid_size) = side_of(Some(bid?), Some(bid_size?));
    let (ask, ask_size) = side_of(Some(ask?), Some(ask_size?));
    Some(Tick {
        channel: "bookTicker",
        quote: true,
        symbol: Cow::Borrowed(named(symbol?)?),
        bid,
        ask,
        bid_size,
        ask_size,
        exchange: Cow::Borrowed(EXCHANGE),
        sequence: Some(id?),
        ..Tick::default()
    })
}

fn bar<'a>(cursor: &mut Json<'a>, channel: &'a str) -> Option<Bar<'a>> {
    let mut left = cursor.open()?;
    read!(cursor, left, "e" event: Json::text, "E" sent: Json::int, "s" symbol: Json::text, "k" bar: window);
    (event? == "kline").then_some(())?;
    Some(Bar { channel, symbol: Cow::Borrowed(named(symbol?)?), sent_ns: Some(epoch_ns(sent?)?), ..bar? })
}

/// The body of a kline. Only `q`, of which the average price is made, may have more digits than float64 holds.
fn window<'a>(cursor: &mut Json<'a>) -> Option<Bar<'a>> {
    let mut left = cursor.open()?;
    read!(cursor, left, "t" start: Json::int, "T" _end: Json::int, "i" interval: Json::text, "o" open: above_zero, "c" close: above_zero,
        "h" high: above_zero, "l" low: above_zero, "v" volume: Json::decimal, "n" trades: Json::int, "x" last: Json::flag, "q" quoted: Json::nearest);
    let (volume, quoted) = (volume?, quoted?);
    let vwap = if volume > 0.0 && quoted > 0.0 { Some(quoted / volume) } else { None };
    if vwap.is_some_and(|vwap| !vwap.is_finite() || vwap <= 0.0) {
        return None;
    }
    short(interval?)?;
    Some(Bar {
        ts_ns: epoch_ns(start?)?,
        interval: interval?,
        open: open?,
        high: high?,
        low: low?,
        close: close?,
        volume,
        vwap,
        trades: Some(trades?),
        last: last?,
        exchange: EXCHANGE,
        ..Bar::default()
    })
}
