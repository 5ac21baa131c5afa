//! Payloads: what is read is written and read back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rssh_proto::payload::{self, CloseOrder, DeviceEvent, DeviceOrder, DeviceStatus, Reply, Request, ServerRequest};
use rssh_proto::topic::Topic;

fn both_ways<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(read) = payload::decode::<T>(bytes) {
        let written = payload::encode(&read);
        // A message may be over the limit once all its defaults are written out.
        if written.len() <= payload::LIMIT {
            assert_eq!(payload::decode::<T>(&written).unwrap(), read);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    both_ways::<Request>(bytes);
    both_ways::<Reply>(bytes);
    both_ways::<DeviceOrder>(bytes);
    both_ways::<CloseOrder>(bytes);
    both_ways::<DeviceStatus>(bytes);
    both_ways::<DeviceEvent>(bytes);
    both_ways::<ServerRequest>(bytes);
    if let Some(topic) = std::str::from_utf8(bytes).ok().and_then(Topic::parse) {
        assert_eq!(Topic::parse(&topic.to_string()), Some(topic));
    }
});
