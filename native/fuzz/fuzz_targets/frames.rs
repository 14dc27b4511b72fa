//! Any bytes as a frame of each provider: no panic, and what is accepted is JSON with as many events, each within the rules.
#![no_main]

use std::collections::HashMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tapeline_native::alpaca::Alpaca;
use tapeline_native::binance::Binance;
use tapeline_native::columns::Table;
use tapeline_native::events::{Decoder, Events};
use tapeline_native::polygon::Polygon;

static DECODERS: LazyLock<Vec<Box<dyn Decoder + Send + Sync>>> = LazyLock::new(|| {
    let polygon = |crypto| Polygon {
        crypto,
        exchanges: HashMap::from([(4, "FINR".to_string()), (1, "XASE".to_string())]),
        facilities: HashMap::from([(201, "FINY".to_string())]),
    };
    let letters = HashMap::from([("V".to_string(), "IEXG".to_string())]);
    vec![
        Box::new(Binance { bars: vec!["kline_1m".to_string()] }),
        Box::new(polygon(false)),
        Box::new(polygon(true)),
        Box::new(Alpaca { exchanges: Some(letters), bars_exchange: Some("composite".to_string()) }),
        Box::new(Alpaca { exchanges: None, bars_exchange: None }),
    ]
});

fuzz_target!(|data: &[u8]| {
    let Some((which, frame)) = data.split_first() else { return };
    let decoder = &DECODERS[usize::from(*which) % DECODERS.len()];
    let mut events = Events::default();
    if decoder.frame(frame, &mut events).is_none() {
        return;
    }
    let count = events.ticks.len() + events.bars.len();
    if frame[0] <= 0x7f {
        match serde_json::from_slice(frame).expect("what is accepted is JSON") {
            Value::Array(elements) => assert_eq!(elements.len(), count),
            other => assert!(other.is_object() && count == 1),
        }
    }
    let (mut ticks, mut bars) = (Table::ticks(0), Table::bars(0));
    for (at, tick) in events.ticks.iter().enumerate() {
        for number in [tick.bid, tick.ask, tick.bid_size, tick.ask_size, tick.last, tick.volume].into_iter().flatten() {
            assert!(number.is_finite() && number.is_sign_positive());
        }
        assert!(!tick.symbol.is_empty() && tick.quote != tick.last.is_some());
        assert!(at == 0 || events.ticks[at - 1].index < tick.index);
        ticks.tick(0, &tick.symbol, tick);
    }
    for bar in &events.bars {
        assert!(bar.open > 0.0 && bar.high > 0.0 && bar.low > 0.0 && bar.close > 0.0 && bar.volume >= 0.0 && bar.volume.is_finite());
        bars.bar(0, &bar.symbol, bar);
    }
    assert_eq!(ticks.rows() + bars.rows(), count);
});
