//! The native core of Tapeline: frames of market data providers to Arrow columns.
//!
//! It takes only what it understands to the last byte. Every other frame goes to the decoder in Python, which says what is right.

pub mod alpaca;
pub mod binance;
pub mod columns;
pub mod cursor;
pub mod events;
pub mod frames;
pub mod json;
pub mod msgpack;
pub mod number;
pub mod polygon;
#[cfg(feature = "python")]
mod python;
