//! What every part of rssh agrees on: ids, targets, MQTT topics, payloads and signed names.
//!
//! Nothing here does input or output. Text from outside becomes one of these types at the edge, or an error that
//! says what was wrong with it; past the edge nothing travels as a bare `String`.

/// Has serde read and write a type as its text: what `#[serde(try_from = "String", into = "String")]` asks for.
macro_rules! as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = <Self as std::str::FromStr>::Err;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}

pub mod audit;
pub mod claim;
pub mod duration;
pub mod enrolment;
pub mod failure;
pub mod finding;
pub mod id;
pub mod name;
pub mod payload;
pub mod registration;
pub mod ssh_key;
pub mod tag;
pub mod target;
pub mod text;
pub mod topic;
pub mod url;

pub use failure::{Failure, FailureKind};
pub use finding::Finding;
pub use id::{
    Account, DeviceId, Epoch, Generation, GroupId, InstanceId, RouterId, ServerId, SessionId, TunnelId, UserId,
};
pub use name::{NameKey, NameMaster, SignedName};
pub use tag::{Tag, Tags};
pub use target::{HostPort, Target};
pub use url::HttpsUrl;
