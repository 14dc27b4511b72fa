//! Alpaca's frames: arrays of trades, quotes and bars, in JSON or MessagePack. Each event begins with its tag, `T`.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::cursor::{Cursor, Key, read};
use crate::events::{Bar, Decoder, Events, Id, Tick, named, short, side_of};
use crate::json::{Json, is_idle};
use crate::msgpack::MessagePack;

pub struct Alpaca {
    /// Its letters of exchanges. Crypto has none.
    pub exchanges: Option<HashMap<String, String>>,
    /// The exchange of its bars; `None` if it has no bars.
    pub bars_exchange: Option<String>,
}

impl Decoder for Alpaca {
    fn frame<'a>(&'a self, frame: &'a [u8], events: &mut Events<'a>) -> Option<()> {
        if *frame.first()? > 0x7f {
            let mut cursor = MessagePack::of(frame);
            self.events(&mut cursor, events)?;
            cursor.end()
        } else {
            let mut cursor = Json::of(frame)?;
            self.events(&mut cursor, events)?;
            cursor.end()
        }
    }
}

impl Alpaca {
    fn events<'a, C: Cursor<'a>>(&'a self, cursor: &mut C, events: &mut Events<'a>) -> Option<()> {
        let mut index = 0;
        let is_array = cursor.list(|cursor| {
            let mut left = cursor.open()?;
            (cursor.key(&mut left)?? == const { Key::of("T") }).then_some(())?;
            match cursor.text()? {
                "t" => events.ticks.push(Tick { index, ..self.trade(cursor, left)? }),
                "q" => events.ticks.push(Tick { index, ..self.quote(cursor, left)? }),
                "b" => events.bars.push(Bar { index, channel: "bars", interval: "1m", ..self.bar(cursor, left)? }),
                "u" => events.bars.push(Bar { index, channel: "updatedBars", interval: "1m", last: true, ..self.bar(cursor, left)? }),
                "d" => events.bars.push(Bar { index, channel: "dailyBars", interval: "1d", ..self.bar(cursor, left)? }),
                _ => return None,
            }
            index += 1;
            Some(())
        })?;
        is_array.then_some(())
    }

    fn exchange<'a>(&'a self, code: Option<&'a str>) -> Option<Cow<'a, str>> {
        let Some(table) = &self.exchanges else { return Some(Cow::Borrowed("alpaca")) };
        let code = code.unwrap_or_default();
        if !code.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return None;
        }
        match code.trim_matches(' ') {
            "" => Some(Cow::Borrowed("composite")),
            code => match table.get(code) {
                Some(name) => Some(Cow::Borrowed(name)),
                None => short(code).map(|code| Cow::Owned(format!("alpaca:{code}"))),
            },
        }
    }

    fn trade<'a, C: Cursor<'a>>(&'a self, cursor: &mut C, mut left: usize) -> Option<Tick<'a>> {
        read!(cursor, left, not "T", "S" symbol: C::text, "i" id: int_or_null, "x" exchange: text_or_null, "p" price: C::price, "s" size: C::float,
            "c" conditions: codes_or_null, "t" time: C::time, "tks" taker: text_or_null);
        Some(Tick {
            channel: "trades",
            symbol: Cow::Borrowed(named(symbol?)?),
            ts_ns: Some(time?),
            last: Some(price?),
            volume: Some(size?),
            side: match taker.flatten() {
                Some("B") => Some("buy"),
                Some("S") => Some("sell"),
                _ => None,
            },
            exchange: self.exchange(exchange.flatten())?,
            trade_id: id.flatten().map(Id::Number),
            conditions: conditions.flatten(),
            ..Tick::default()
        })
    }

    fn quote<'a, C: Cursor<'a>>(&'a self, cursor: &mut C, mut left: usize) -> Option<Tick<'a>> {
        read!(cursor, left, not "T", "S" symbol: C::text, "bx" bid_exchange: text_or_null, "bp" bid: float_or_null, "bs" bid_size: float_or_null,
            "ax" ask_exchange: text_or_null, "ap" ask: float_or_null, "as" ask_size: float_or_null, "c" conditions: codes_or_null,
            "t" time: C::time);
        let (bid, bid_size) = side_of(bid.flatten(), bid_size.flatten());
        let (ask, ask_size) = side_of(ask.flatten(), ask_size.flatten());
        let with_bid = bid_exchange.flatten().filter(|code| bid.is_some() && code.bytes().any(|byte| byte != b' '));
        Some(Tick {
            channel: "quotes",
            quote: true,
            symbol: Cow::Borrowed(named(symbol?)?),
            ts_ns: Some(time?),
            bid,
            ask,
            bid_size,
            ask_size,
            exchange: self.exchange(with_bid.or(ask_exchange.flatten()))?,
            conditions: conditions.flatten(),
            ..Tick::default()
        })
    }

    fn bar<'a, C: Cursor<'a>>(&'a self, cursor: &mut C, mut left: usize) -> Option<Bar<'a>> {
        read!(cursor, left, not "T", "S" symbol: C::text, "o" open: C::price, "h" high: C::price, "l" low: C::price, "c" close: C::price,
            "v" volume: C::float, "n" trades: int_or_null, "vw" vwap: float_or_null, "t" time: C::time);
        let volume = volume?;
        Some(Bar {
            symbol: Cow::Borrowed(named(symbol?)?),
            ts_ns: time?,
            open: open?,
            high: high?,
            low: low?,
            close: close?,
            volume,
            vwap: vwap.flatten().filter(|price| volume > 0.0 && *price > 0.0),
            trades: trades.flatten(),
            exchange: self.bars_exchange.as_deref()?,
            ..Bar::default()
        })
    }
}

fn int_or_null<'a, C: Cursor<'a>>(cursor: &mut C) -> Option<Option<i64>> {
    cursor.or_null(C::int)
}

fn float_or_null<'a, C: Cursor<'a>>(cursor: &mut C) -> Option<Option<f64>> {
    cursor.or_null(C::float)
}

fn text_or_null<'a, C: Cursor<'a>>(cursor: &mut C) -> Option<Option<&'a str>> {
    cursor.or_null(C::text)
}

/// Conditions joined by commas: a list of texts, one text, or nothing. A text that may be a long number is left to Python, which counts it.
fn codes_or_null<'a, C: Cursor<'a>>(cursor: &mut C) -> Option<Option<Cow<'a, str>>> {
    if cursor.null() {
        return Some(None);
    }
    let mut joined: Option<Cow<'a, str>> = None;
    let is_list = cursor.list(|cursor| {
        let code = cursor.text()?;
        match &mut joined {
            None => joined = Some(Cow::Borrowed(code)),
            Some(codes) => {
                codes.to_mut().push(',');
                codes.to_mut().push_str(code);
            }
        }
        Some(())
    })?;
    if !is_list {
        joined = Some(Cow::Borrowed(cursor.text().filter(|code| is_idle(code))?));
    }
    short(joined.as_deref().unwrap_or_default())?;
    Some(joined)
}
