//! JSON payloads, version 1.
//!
//! Each message is one JSON object of at most [`LIMIT`] bytes. Unknown fields are ignored, so that a newer sender can
//! add one; an unknown variant is an error. Spans of time are relative seconds or milliseconds (clocks at 1970 exist on
//! devices); points in time are Unix seconds and come from servers only.

mod event;
mod order;
mod peer;
mod reply;
mod request;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use event::{DeviceEvent, DeviceEventKind, DeviceStatus, Presence};
pub use order::{CloseOrder, DeviceOrder, OpenOrder, PortHint};
pub use peer::{RouterStatus, ServerOperation, ServerRequest, ServerState, ServerStatus};
pub use reply::{ClosedTunnel, DeviceInfo, Rank, Reply, ReplyBody, SharedName, TunnelInfo, TunnelState, TunnelTrace};
pub use request::{CloseRequest, OpenRequest, Operation, Request, Which};

/// The largest payload, in bytes; the broker refuses larger packets too.
pub const LIMIT: usize = 4096;

/// Why a payload was dropped.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("payload of {0} bytes is over the limit of {LIMIT}")]
    TooLarge(usize),
    #[error("not a payload of this topic: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a payload.
///
/// # Errors
/// When it is over [`LIMIT`] bytes, not JSON, nested deeper than 128 levels, or not a valid `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > LIMIT {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Writes a payload.
pub fn encode<T: Serialize>(payload: &T) -> Vec<u8> {
    // Every payload type is a tree of strings, numbers and lists: nothing in it can fail to serialize.
    serde_json::to_vec(payload).expect("payloads serialize")
}

/// The protocol's version, checked while reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct V1;

impl TryFrom<u8> for V1 {
    type Error = String;

    fn try_from(version: u8) -> Result<Self, String> {
        if version == 1 {
            Ok(Self)
        } else {
            Err(format!("protocol version {version} is not 1"))
        }
    }
}

impl From<V1> for u8 {
    fn from(_: V1) -> u8 {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, Generation, InstanceId, SessionId, TunnelId};
    use crate::target::Target;

    fn request(op: Operation) -> Request {
        Request {
            v: V1,
            id: TunnelId::generate(),
            session: SessionId::generate(),
            deadline_ms: 15_000,
            op,
        }
    }

    #[test]
    fn requests_read_back() {
        for op in [
            Operation::Open(OpenRequest {
                device: "device-1".parse().unwrap(),
                target: Target::ssh(),
                remote_port: Some(20_001),
                ttl_s: Some(3600),
                idle_s: None,
                new: false,
                wait: false,
                hold: true,
            }),
            Operation::Close(CloseRequest {
                which: Which::Device {
                    device: "device-1".parse().unwrap(),
                    target: None,
                },
                force: true,
            }),
            Operation::List,
            Operation::Name {
                tunnel: TunnelId::generate(),
            },
        ] {
            let request = request(op);
            assert_eq!(decode::<Request>(&encode(&request)).unwrap(), request);
        }
    }

    #[test]
    fn bad_payloads_are_errors() {
        let good = String::from_utf8(encode(&request(Operation::List))).unwrap();
        assert!(decode::<Request>(good.as_bytes()).is_ok());
        let deep = "[".repeat(2000);
        for bad in [
            good.replace("\"v\":1", "\"v\":2"),
            good.replace("\"list\"", "\"format-disk\""),
            good.replace("\"session\":\"", "\"session\":\"../"),
            good.replace("{\"v\":1", "{\"v\":1,\"v\":1"),
            good.replace("{\"v\":1", &format!("{{\"extra\":{deep},\"v\":1")),
            good[..good.len() - 1].to_owned(),
            deep,
            String::new(),
        ] {
            assert!(decode::<Request>(bad.as_bytes()).is_err(), "{bad:.80}");
        }
        assert!(decode::<Request>(b"\xff\xfe{}").is_err());
        assert!(matches!(
            decode::<Request>(&vec![b' '; LIMIT + 1]),
            Err(DecodeError::TooLarge(_))
        ));
    }

    #[test]
    fn a_full_status_fits_the_limit() {
        let status = DeviceStatus {
            v: V1,
            presence: Presence::Online,
            generation: Generation(u64::MAX),
            instance: InstanceId::generate(),
            tunnels: vec![(TunnelId::generate(), Epoch(u64::from(u32::MAX))); DeviceStatus::MAX_TUNNELS],
        };
        assert!(encode(&status).len() <= LIMIT);
    }
}
