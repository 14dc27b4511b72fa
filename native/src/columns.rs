//! Arrow columns as plain buffers: values, offsets and validity bits, as Arrow lays them out.

use crate::events::{Bar, Id, Tick};

/// One bit a row, the first in the lowest bit of the first byte.
pub fn bits(flags: &[bool]) -> Vec<u8> {
    let packed = |eight: &[bool]| eight.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    flags.chunks(8).map(packed).collect()
}

pub enum Values {
    /// Eight bytes a row.
    Numbers(Vec<u8>),
    Flags(Vec<bool>),
    /// The offset of each row's end, and all texts.
    Texts(Vec<u8>, Vec<u8>),
}

/// One column of a batch.
pub struct Column {
    pub name: &'static str,
    pub values: Values,
    pub valid: Vec<bool>,
    pub nulls: usize,
}

impl Column {
    fn of(name: &'static str, values: Values) -> Column {
        Column { name, values, valid: vec![], nulls: 0 }
    }

    fn numbers(name: &'static str) -> Column {
        Column::of(name, Values::Numbers(vec![]))
    }

    fn flags(name: &'static str) -> Column {
        Column::of(name, Values::Flags(vec![]))
    }

    fn texts(name: &'static str) -> Column {
        Column::of(name, Values::Texts(vec![0; 4], vec![]))
    }

    /// Makes room for so many more rows.
    fn reserve(&mut self, rows: usize) {
        self.valid.reserve(rows);
        match &mut self.values {
            Values::Numbers(values) => values.reserve(8 * rows),
            Values::Flags(flags) => flags.reserve(rows),
            Values::Texts(ends, texts) => {
                ends.reserve(4 * rows);
                texts.reserve(8 * rows);
            }
        }
    }

    fn mark(&mut self, valid: bool) {
        self.valid.push(valid);
        self.nulls += usize::from(!valid);
    }

    fn eight(&mut self, value: Option<[u8; 8]>) {
        if let Values::Numbers(values) = &mut self.values {
            values.extend_from_slice(&value.unwrap_or_default());
        }
        self.mark(value.is_some());
    }

    fn int(&mut self, value: Option<i64>) {
        self.eight(value.map(i64::to_le_bytes));
    }

    fn float(&mut self, value: Option<f64>) {
        self.eight(value.map(f64::to_le_bytes));
    }

    fn flag(&mut self, value: bool) {
        if let Values::Flags(flags) = &mut self.values {
            flags.push(value);
        }
        self.mark(true);
    }

    fn text(&mut self, value: Option<&str>) {
        if let Values::Texts(ends, texts) = &mut self.values {
            texts.extend_from_slice(value.unwrap_or_default().as_bytes());
            ends.extend_from_slice(&(texts.len() as u32).to_le_bytes());
        }
        self.mark(value.is_some());
    }

    /// A number from 0 as a text of digits.
    fn digits(&mut self, mut number: i64) {
        let (mut written, mut from) = ([b'0'; 20], 20);
        while from == 20 || number > 0 {
            from -= 1;
            written[from] = b'0' + (number % 10) as u8;
            number /= 10;
        }
        self.text(std::str::from_utf8(&written[from..]).ok());
    }
}

/// The rows of one topic, with the place of each: its row among the frames in the upper 32 bits, its number in the frame in the lower.
pub struct Table {
    /// For how many rows there is room from the first one on.
    expected: usize,
    pub place: Vec<u8>,
    pub columns: Vec<Column>,
}

impl Table {
    pub fn ticks(expected: usize) -> Table {
        let texts = ["symbol", "kind", "side", "exchange", "channel", "trade_id", "conditions"].map(Column::texts);
        let numbers = ["ts_ns", "bid", "ask", "bid_size", "ask_size", "last", "volume", "sequence"].map(Column::numbers);
        Table { expected: expected.max(64), place: vec![], columns: texts.into_iter().chain(numbers).collect() }
    }

    pub fn bars(expected: usize) -> Table {
        let texts = ["symbol", "interval", "exchange", "channel"].map(Column::texts);
        let numbers = ["ts_ns", "open", "high", "low", "close", "volume", "vwap", "trades", "sent_ns"].map(Column::numbers);
        let flags = ["final"].map(Column::flags);
        Table { expected: expected.max(64), place: vec![], columns: texts.into_iter().chain(numbers).chain(flags).collect() }
    }

    pub fn rows(&self) -> usize {
        self.place.len() / 8
    }

    fn at(&mut self, row: usize, index: u32) {
        if self.place.len() == self.place.capacity() {
            let more = self.rows().max(self.expected); // the columns grow together, so that few rows make any of them grow
            self.place.reserve(8 * more);
            self.columns.iter_mut().for_each(|column| column.reserve(more));
        }
        let place = (row as u64) << 32 | u64::from(index);
        self.place.extend_from_slice(&place.to_le_bytes());
    }

    pub fn tick(&mut self, row: usize, symbol: &str, tick: &Tick) {
        self.at(row, tick.index);
        let [symbols, kind, side, exchange, channel, trade_id, conditions, ts_ns, bid, ask, bid_size, ask_size, last, volume, sequence] =
            &mut self.columns[..]
        else {
            unreachable!("a table of ticks has these columns")
        };
        symbols.text(Some(symbol));
        kind.text(Some(if tick.quote { "quote" } else { "trade" }));
        side.text(tick.side);
        exchange.text(Some(&tick.exchange));
        channel.text(Some(tick.channel));
        match &tick.trade_id {
            Some(Id::Number(id)) => trade_id.digits(*id),
            Some(Id::Text(id)) => trade_id.text(Some(id)),
            None => trade_id.text(None),
        }
        conditions.text(tick.conditions.as_deref());
        ts_ns.int(tick.ts_ns);
        bid.float(tick.bid);
        ask.float(tick.ask);
        bid_size.float(tick.bid_size);
        ask_size.float(tick.ask_size);
        last.float(tick.last);
        volume.float(tick.volume);
        sequence.int(tick.sequence);
    }

    pub fn bar(&mut self, row: usize, symbol: &str, bar: &Bar) {
        self.at(row, bar.index);
        let [symbols, interval, exchange, channel, ts_ns, open, high, low, close, volume, vwap, trades, sent_ns, last] =
            &mut self.columns[..]
        else {
            unreachable!("a table of bars has these columns")
        };
        symbols.text(Some(symbol));
        interval.text(Some(bar.interval));
        exchange.text(Some(bar.exchange));
        channel.text(Some(bar.channel));
        ts_ns.int(Some(bar.ts_ns));
        for (column, price) in [(open, bar.open), (high, bar.high), (low, bar.low), (close, bar.close), (volume, bar.volume)] {
            column.float(Some(price));
        }
        vwap.float(bar.vwap);
        trades.int(bar.trades);
        sent_ns.int(bar.sent_ns);
        last.flag(bar.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_is_the_lowest_bit() {
        assert_eq!(bits(&[]), []);
        assert_eq!(bits(&[true, false, true]), [0b101]);
        assert_eq!(bits(&[false, true, false, false, false, false, false, true, true]), [0b1000_0010, 1]);
    }
}
