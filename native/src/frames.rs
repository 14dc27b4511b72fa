//! Decodes the frames of one feed in a batch into tables, and says which frames it did not understand.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::columns::Table;
use crate::events::{Decoder, Events};

/// No table gets more frames than this many bytes: the offsets of its texts are 32 bits.
const MOST_BYTES: usize = 1 << 29;

/// What a batch of frames became.
pub struct Decoded {
    pub ticks: Table,
    pub bars: Table,
    /// The rows whose frames were not understood.
    pub left: Vec<u8>,
}

/// Gives the canonical symbol for a name in an event, or `None`.
pub type Canonical<'c> = &'c dyn Fn(&str) -> Option<String>;
/// The canonical symbol of each name; `None` for a name that splits nowhere.
type Names<'a> = HashMap<&'a str, Option<String>, BuildHasherDefault<Quick>>;

/// FNV-1a. The names are few and short, and whoever could choose them to collide could as well send more of them.
struct Quick(u64);

impl Default for Quick {
    fn default() -> Quick {
        Quick(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Decodes `frames`, each with its row. `canonical` gives the canonical symbol for the name in an event; without it, names are canonical.
pub fn decode<'a>(decoder: &'a dyn Decoder, frames: impl Iterator<Item = (usize, &'a [u8])>, canonical: Option<Canonical>) -> Decoded {
    let expected = frames.size_hint().0;
    let mut decoded = Decoded { ticks: Table::ticks(expected), bars: Table::bars(expected), left: vec![] };
    let mut names: Names = HashMap::default();
    let mut events = Events::default();
    let mut bytes = 0;
    for (row, frame) in frames {
        events.ticks.clear();
        events.bars.clear();
        bytes += frame.len();
        // A panic is a fault of this code. It costs this frame the quick way, and nothing else: Python decodes it.
        let attempt = catch_unwind(AssertUnwindSafe(|| decoder.frame(frame, &mut events)));
        let understood = bytes < MOST_BYTES && matches!(attempt, Ok(Some(()))) && named(&events, &mut names, canonical);
        if !understood {
            decoded.left.extend_from_slice(&(row as i64).to_le_bytes());
            continue;
        }
        let symbol_of = |name: &'_ str| -> Option<&str> { names.get(name)?.as_deref() };
        for tick in &events.ticks {
            decoded.ticks.tick(row, symbol_of(&tick.symbol).unwrap_or(&tick.symbol), tick);
        }
        for bar in &events.bars {
            decoded.bars.bar(row, symbol_of(&bar.symbol).unwrap_or(&bar.symbol), bar);
        }
    }
    decoded
}

/// Looks up the names of all symbols. False if one of them has no canonical symbol.
fn named<'a>(events: &Events<'a>, names: &mut Names<'a>, canonical: Option<Canonical>) -> bool {
    let Some(canonical) = canonical else { return true };
    let symbols = events.ticks.iter().map(|tick| &tick.symbol).chain(events.bars.iter().map(|bar| &bar.symbol));
    symbols.into_iter().all(|symbol| match symbol {
        std::borrow::Cow::Borrowed(name) => names.entry(name).or_insert_with(|| canonical(name)).is_some(),
        std::borrow::Cow::Owned(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binance::Binance;
    use crate::events::Tick;

    /// Panics at the frame `bad`, after it has read some of it.
    struct Faulty;

    impl Decoder for Faulty {
        fn frame<'a>(&'a self, frame: &'a [u8], events: &mut Events<'a>) -> Option<()> {
            events.ticks.push(Tick { symbol: std::str::from_utf8(frame).ok()?.into(), ..Tick::default() });
            assert_ne!(frame, b"bad");
            Some(())
        }
    }

    fn rows_of(left: &[u8]) -> Vec<i64> {
        left.chunks(8).map(|row| i64::from_le_bytes(row.try_into().unwrap())).collect()
    }

    #[test]
    fn a_panic_costs_one_frame_and_leaves_nothing_of_it() {
        let frames: [&[u8]; 3] = [b"good", b"bad", b"fine"];
        let decoded = decode(&Faulty, frames.into_iter().enumerate(), None);
        assert_eq!(decoded.ticks.rows(), 2);
        assert_eq!(rows_of(&decoded.left), [1]);
    }

    #[test]
    fn a_name_without_a_canonical_symbol_is_left_and_is_asked_for_once() {
        let asked = std::cell::RefCell::new(vec![]);
        let canonical = |name: &str| {
            asked.borrow_mut().push(name.to_string());
            name.strip_suffix("USDT").map(|base| format!("{base}/USDT"))
        };
        let frame = |symbol: &str| {
            format!(r#"{{"stream":"x@bookTicker","data":{{"u":1,"s":"{symbol}","b":"1","B":"1","a":"2","A":"2"}}}}"#).into_bytes()
        };
        let frames = ["BTCUSDT", "QQQ", "BTCUSDT", "QQQ"].map(frame);
        let binance = Binance { bars: vec![] };
        let decoded = decode(&binance, frames.iter().map(Vec::as_slice).enumerate(), Some(&canonical));
        assert_eq!(decoded.ticks.rows(), 2);
        assert_eq!(rows_of(&decoded.left), [1, 3]);
        assert_eq!(*asked.borrow(), ["BTCUSDT", "QQQ"]);
    }
}
