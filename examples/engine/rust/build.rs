//! Lets protoc make the messages of market_data.proto.

fn main() -> std::io::Result<()> {
    prost_build::compile_protos(&["../../../proto/market_data.proto"], &["../../../proto"])
}
